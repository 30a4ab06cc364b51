"""The command line as an operator uses it, and orders that tests write without a server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text
from uuid_utils.compat import uuid7

from server import cli
from server.config import settings
from server.store.check import violations
from tests.support.customer import Customer
from tests.support.databases import Database, drop_database, new_database

COMMAND = Path(sys.executable).parent / "ordernumbers"


class OrderNumbers:
    """The command `ordernumbers`, run in this process or in a new one."""

    def __init__(self, monkeypatch, capsys):
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments):
        """Run a command that succeeds, and return its JSON output."""
        status, out, err = self.run(*arguments, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    def refusal(self, *arguments):
        """Run a command that fails, and return the error in its JSON output."""
        status, out, err = self.run(*arguments, "--json")
        assert status != 0
        assert out == ""
        error = json.loads(err)
        assert list(error) == ["error"]
        return error["error"]

    def run(self, *arguments):
        """Run a command in this process, and return its exit status, stdout and stderr."""
        settings.cache_clear()
        self._capsys.readouterr()
        self._monkeypatch.setattr(sys, "argv", ["ordernumbers", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        settings.cache_clear()
        return exited.value.code or 0, *self._capsys.readouterr()

    @staticmethod
    def process(*arguments, **options):
        """Run a command in a new process."""
        command = [COMMAND, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, timeout=60, check=False, **options)


@pytest.fixture
def ordernumbers(database, monkeypatch, capsys):
    monkeypatch.setenv("DATABASE_URL", database.url)
    return OrderNumbers(monkeypatch, capsys)


@pytest.fixture
def damaged(postgres):
    """A database whose invariants are not checked after the test."""
    name = new_database(postgres)
    yield Database.at(postgres.url(name))
    drop_database(postgres, name)


@pytest.fixture
def customer(database):
    return Customer.open(database.engine)


SELL = [
    """
    INSERT INTO orders (organization_id, id, api_key_id, request_id, total_micros, number_count, created_at)
    VALUES (:organization, :order, :key, 'a request', 1000000, 1, clock_timestamp())
    """,
    """
    INSERT INTO assignment (organization_id, id, order_id, number, price_micros, created_at, updated_at)
    VALUES (:organization, :assignment, :order, :number, 1000000, clock_timestamp(), clock_timestamp())
    """,
    "UPDATE phone_number SET assignment_id = :assignment WHERE number = :number",
    """
    WITH paid AS (
      UPDATE organization SET balance_micros = balance_micros - 1000000, entry_no = entry_no + 1
      WHERE id = :organization
      RETURNING *
    )
    INSERT INTO ledger_entry (organization_id, entry_no, kind, amount_micros, balance_micros, order_id, created_at)
    SELECT id, entry_no, 'order', -1000000, balance_micros, :order, clock_timestamp()
    FROM paid
    """,
]


def sale_of(customer, number):
    """The ids of a new sale, as SELL takes them."""
    return {
        "organization": customer.id,
        "key": customer.key_id,
        "order": uuid7(),
        "assignment": uuid7(),
        "number": number,
    }


def sell(customer, number):
    """Write an order of one number for one credit, as a server does. Return its ids."""
    ids = sale_of(customer, number)
    with customer.engine.begin() as connection:
        for statement in SELL:
            connection.execute(text(statement), ids)
    return ids


@pytest.fixture
def sold(damaged):
    """The ids of an order of one number, for the test to damage. Beside it are a correct order and an unsold number."""
    customer = Customer.open(damaged.engine)
    damaged_number, correct_number, _ = customer.numbers(3)
    ids = sell(customer, damaged_number)
    sell(customer, correct_number)
    assert violations(damaged.engine) == []
    return ids


@pytest.fixture
def damage(damaged, sold):
    """Run statements that break something, and return the findings of the check."""

    def run(*statements, **values):
        with damaged.engine.begin() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))  # turns off foreign keys
            for statement in statements:
                # A statement that finds no row would break nothing.
                assert connection.execute(text(statement), sold | values).rowcount
        return violations(damaged.engine)

    return run


# Statements for `damage`.
RELEASE = (
    "UPDATE assignment SET released_at = now() WHERE id = :assignment",
    """
    INSERT INTO number_event (number, id, kind, organization_id, after, created_at)
    VALUES (:number, :assignment, 'released', :organization, jsonb_build_object('available_at', now()), now())
    """,
)
REST = """
    UPDATE phone_number SET assignment_id = NULL, held_by = :organization, free_at = now(), rest_until = now()
    WHERE number = :number
"""
COUNT_1 = ()  # as `sell` writes it
COUNT_3 = ("UPDATE orders SET number_count = 3 WHERE id = :order",)
# As written by a server that did not know these columns.
NO_COUNT = ("UPDATE orders SET number_count = NULL", "UPDATE assignment SET price_micros = NULL")
# Two more numbers of the order. The ids are random, unlike uuid7.
TWO_MORE_NUMBERS = tuple(
    f"""
    WITH number AS (
      INSERT INTO phone_number (number, number_type, sms_enabled, mms_enabled, price_micros, assignment_id)
      VALUES ('+{i}', 'local', true, true, 0, gen_random_uuid())
      RETURNING *
    )
    INSERT INTO assignment (organization_id, id, order_id, number, price_micros, created_at, updated_at)
    SELECT :organization, assignment_id, :order, number, 0, now(), now() FROM number
    """
    for i in (1, 2)
)
