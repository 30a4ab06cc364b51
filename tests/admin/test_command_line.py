"""The command itself: its output, its errors, its exit status."""

import json
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import text

from server.store import migrations
from server.store.check import durability, violations
from server.store.engine import admin_engine
from tests.support.databases import execute

UNKNOWN = uuid4()


@pytest.fixture
def org(ordernumbers):
    return ordernumbers("org", "create", "Acme")["id"]


def test_results_are_sentences_without_json(ordernumbers, org):
    assert ordernumbers.run("org", "show", org) == (0, f"Acme ({org}): balance 0.00, 0 numbers\n", "")
    assert ordernumbers.run("org", "credit", org, "-1") == (1, "", "ordernumbers: the balance would fall below zero\n")


ESCAPES = "\x1b]0;title\x07\x1b[2J\r\b\x9b31m\u202e\u2066\u200b\x7f"


def test_control_characters_in_names_and_files_are_escaped(ordernumbers, database, org, tmp_path):
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE organization SET name = :name"), {"name": f"Acme {ESCAPES}電話\n"})
    file = tmp_path / f"{ESCAPES}.csv"
    file.write_text(f'number,"{ESCAPES}"\n', encoding="utf-8")
    shown = r"\x1b]0;title\x07\x1b[2J\r\x08\x9b31m\u202e\u2066\u200b\x7f"
    commands = [("org", "show", org), ("inventory", "import", file), ("inventory", "import", f"{file}{ESCAPES}")]
    for command in commands:
        _, out, err = ordernumbers.run(*command)
        assert shown in out + err
        assert (out + err).replace("\n", "").isprintable()
        _, out, err = ordernumbers.run(*command, "--json")
        assert (out + err).strip().isprintable()
    assert "電話" in ordernumbers.run(*commands[0])[1]


def test_wrong_usage_exits_with_2(ordernumbers):
    for command in (
        ("org", "show"),
        ("org", "show", "seven"),
        ("org", "show", UNKNOWN, "--verbose"),
        ("org", "delete", UNKNOWN),
        ("key", "create", UNKNOWN),
        ("brand", "create", UNKNOWN, "B"),
        ("campaign", "create", UNKNOWN, "C"),
    ):
        assert ordernumbers.refusal(*command)
        status, out, err = ordernumbers.run(*command)
        assert (status, out) == (2, "")
        assert "Try 'ordernumbers" in err


def test_check_names_what_is_wrong_and_exits_with_1(ordernumbers, database, customer):
    customer.numbers(1)
    unsafe = durability(database.engine)  # the tests' own PostgreSQL is fast instead
    status, out, err = ordernumbers.run("check", "--json")
    assert (status, json.loads(out), err) == (1, {"ok": False, "violations": unsafe}, "")
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE organization SET balance_micros = balance_micros + 1"))
    status, out, err = ordernumbers.run("check", "--json")
    sentence = (
        f"organization {customer.id} has a balance of 1000000000001 micros after 1 ledger entries, "
        "but its newest entry is 1 with a balance of 1000000000000"
    )
    assert (status, json.loads(out), err) == (1, {"ok": False, "violations": [sentence, *unsafe]}, "")
    assert ordernumbers.run("check") == (1, "\n".join([sentence, *unsafe]) + "\n", "")
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE organization SET balance_micros = balance_micros - 1"))


def test_a_database_is_upgraded_once(ordernumbers, postgres, monkeypatch):
    execute(postgres, "CREATE DATABASE empty")
    monkeypatch.setenv("DATABASE_URL", postgres.url("empty"))
    newest = migrations.newest()
    for command in (("org", "create", "Acme"), ("check",), ("inventory", "stats"), ("serve",)):
        assert ordernumbers.refusal(*command) == (
            "the database does not have this version's schema: run `ordernumbers db upgrade`"
        )
    assert ordernumbers("db", "upgrade") == {"from": None, "to": newest}
    assert ordernumbers("db", "upgrade") == {"from": newest, "to": newest}
    assert ordernumbers.run("db", "upgrade")[1] == f"The database is already at {newest}.\n"
    assert violations(admin_engine(postgres.url("empty"))) == []
    execute(postgres, "DROP DATABASE empty")


def test_a_database_of_another_version_is_left_alone(ordernumbers, postgres, monkeypatch):
    execute(postgres, "CREATE DATABASE newer TEMPLATE migrated")
    monkeypatch.setenv("DATABASE_URL", postgres.url("newer"))
    with psycopg.connect(postgres.url("newer")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.execute("COMMENT ON TABLE alembic_version IS '9998'")
    for command in (("db", "upgrade"), ("serve",)):
        assert ordernumbers.refusal(*command).startswith("the database is newer than this version of the program")
    execute(postgres, "DROP DATABASE newer")


def test_an_unreachable_database_is_reported_without_its_password(ordernumbers, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://someone:sekret@127.0.0.1:1/numbers")
    for command in (("check",), ("org", "show", UNKNOWN), ("db", "upgrade"), ("inventory", "stats"), ("serve",)):
        status, out, err = ordernumbers.run(*command)
        assert (status, out) == (1, "")
        assert err.startswith("ordernumbers: cannot reach the database: ")
        assert len(err.splitlines()) == 1
        assert "sekret" not in err


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://someone:sekret@[/numbers",
        "postgresql://someone:sekret@h/n?sekret=1&x",
        "postgresql://someone:p@sekret@127.0.0.1:1/numbers",
        "postgresql://someone:p@127.0.0.1:sekret@127.0.0.1:1/numbers",
        "postgresql://someone:1/sekret@127.0.0.1:1/numbers",
    ],
)
def test_an_invalid_url_is_reported_without_its_password(ordernumbers, monkeypatch, url):
    monkeypatch.setenv("DATABASE_URL", url)
    for command in ("check", "serve", "up", "edge"):
        status, out, err = ordernumbers.run(command)
        assert (status, out) == (1, ""), command
        assert err.startswith("ordernumbers: DATABASE_URL: ")
        assert "sekret" not in err


def test_without_a_database_the_error_explains_how_to_get_one(ordernumbers, monkeypatch, tmp_path):
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv("ORDERNUMBERS_DATA_DIR", str(tmp_path))
    assert ordernumbers.refusal("check") == (
        f"the embedded database of {tmp_path} is not running. "
        "Start it with `ordernumbers up` (make run), or set DATABASE_URL"
    )


def test_a_wrong_setting_is_named(ordernumbers, monkeypatch):
    monkeypatch.setenv("ORDERNUMBERS_REST_PORT", "http")
    assert ordernumbers.refusal("check").startswith("ORDERNUMBERS_REST_PORT: ")


def test_the_edges_configuration_is_printed(ordernumbers, monkeypatch):
    monkeypatch.setenv("ORDERNUMBERS_REST_PORT", "22001")
    assert "22001" in str(ordernumbers("edge", "--print")["static_resources"])


def test_the_installed_command_does_the_same(ordernumbers, org):
    done = ordernumbers.process("org", "show", org, "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == f'{{"id": "{org}", "name": "Acme", "balance": "0.00", "numbers": 0}}\n'.encode()
    done = ordernumbers.process("key", "revoke", UNKNOWN)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", f"ordernumbers: no key {UNKNOWN}\n".encode())
