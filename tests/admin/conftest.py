"""The command line as an operator uses it, and numbers that are sold without a server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text
from uuid_utils.compat import uuid7

from server import cli
from server.config import settings
from tests.conftest import Database, _execute, _new_database
from tests.support.customer import Customer

COMMAND = Path(sys.executable).parent / "ordernumbers"


class OrderNumbers:
    """`ordernumbers`, run in this process or in one of its own."""

    def __init__(self, monkeypatch, capsys):
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments):
        """What it says in JSON when it succeeds."""
        status, out, err = self.run(*arguments, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)

    def refusal(self, *arguments):
        """The error it tells in JSON."""
        status, out, err = self.run(*arguments, "--json")
        assert status != 0
        assert out == ""
        error = json.loads(err)
        assert list(error) == ["error"]
        return error["error"]

    def run(self, *arguments):
        """Its exit status, stdout and stderr."""
        settings.cache_clear()
        self._capsys.readouterr()
        self._monkeypatch.setattr(sys, "argv", ["ordernumbers", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        settings.cache_clear()
        return exited.value.code or 0, *self._capsys.readouterr()

    @staticmethod
    def process(*arguments, **options):
        """The same as a process."""
        command = [COMMAND, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, timeout=60, check=False, **options)


@pytest.fixture
def ordernumbers(database, monkeypatch, capsys):
    monkeypatch.setenv("DATABASE_URL", database.url)
    return OrderNumbers(monkeypatch, capsys)


@pytest.fixture
def damaged(postgres):
    """A database that no test expects to be in order afterwards."""
    name = _new_database(postgres)
    yield Database.at(postgres.url(name))
    _execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


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


def sell(customer, number):
    """An order of one number at one credit, as a server would write it. Returns the ids in it."""
    ids = {
        "organization": customer.id,
        "key": customer.key_id,
        "order": uuid7(),
        "assignment": uuid7(),
        "number": number,
    }
    with customer.engine.begin() as connection:
        for statement in SELL:
            connection.execute(text(statement), ids)
    return ids
