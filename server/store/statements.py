"""The statements of the hot path. Their SQL is in sql/*.sql, and each connection prepares those that it needs.

A file has sections, each with one statement under a line `-- name: …`. Parameters are written as psql reads them,
`:'numbers'`, so that a statement can be pasted into psql after `\\set numbers '{+14155550100}'`.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from importlib.resources import files
from operator import attrgetter
from typing import Any, NamedTuple

import orjson

_SECTION = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_COMMENT = re.compile(r"^ *--.*\n", re.MULTILINE)
_PARAMETER = re.compile(r":'(\w+)'")


class BoundStatement(NamedTuple):
    """A prepared statement's name with its parameters, as `PipelinedConnection.run` takes it."""

    name: bytes
    parameters: list[bytes]


class Statement:
    """One statement under the name that it is prepared by. Call it with its parameters, as PostgreSQL's texts."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name.encode()
        self.text = text
        self.parameters: Sequence[str] = list(dict.fromkeys(_PARAMETER.findall(text)))

    @property
    def sql(self) -> bytes:
        """Its SQL as PostgreSQL reads it, with $1, $2, … for the parameters."""
        return _PARAMETER.sub(lambda match: f"${self.parameters.index(match[1]) + 1}", self.text).encode()

    @property
    def named_sql(self) -> str:
        """Its SQL as SQLAlchemy's text() reads it, with :numbers, … for the parameters."""
        return _PARAMETER.sub(r"(:\1)", self.text)  # in parentheses, because a cast with :: may follow

    def named(self, bound: BoundStatement) -> dict[str, str]:
        """The parameters of this statement by their names."""
        return dict(zip(self.parameters, (value.decode() for value in bound.parameters), strict=True))

    def __call__(self, **parameters: str) -> BoundStatement:
        return BoundStatement(self.name, [parameters[name].encode() for name in self.parameters])

    def skipping_locked(self) -> "Statement":
        """The same, but it skips rows that another transaction has locked."""
        return Statement(f"{self.name.decode()}_skip_locked", f"{self.text}\nSKIP LOCKED")


@cache
def _sections(file: str) -> dict[str, str]:
    _, *parts = _SECTION.split((files("server.store") / "sql" / f"{file}.sql").read_text())
    return {
        name: _COMMENT.sub("", text).strip().removesuffix(";") for name, text in zip(*[iter(parts)] * 2, strict=True)
    }


def load(file: str, name: str) -> Statement:
    """The statement of that section of sql/`file`.sql. Raises KeyError when there is none."""
    return Statement(name, _sections(file)[name])


class JsonRows:
    """Many rows as one JSON parameter, which costs half of what an array per column costs.

    The columns are those that the statement's own `json_to_recordset` lists. The value of a column is the attribute of
    that name, or the one that `paths` gives for it.
    """

    def __init__(self, statement: Statement, parameter: str, default_path: str = "{}", **paths: str) -> None:
        listed = re.search(rf"json_to_recordset\(:'{parameter}'::json\) AS \w+ \(([^()]*)\)", statement.text)
        assert listed, f"{statement.name.decode()} has no rows {parameter}"  # noqa: S101
        self.columns = [column.split()[0] for column in listed[1].split(",")]
        self._values = attrgetter(*(paths.get(column, default_path.format(column)) for column in self.columns))

    def json(self, rows: Iterable[Any]) -> str:
        """The rows as the parameter's text."""
        return orjson.dumps(
            [dict(zip(self.columns, values, strict=True)) for values in map(self._values, rows)]
        ).decode()


def milliseconds(ms: float) -> str:
    """PostgreSQL's text for a duration. At least 1 ms, because 0 would mean no limit."""
    return f"{max(1, int(ms))}ms"


def array(texts: Collection[str]) -> str:
    """PostgreSQL's text for an array of texts that hold no quote or backslash: each once, and sorted."""
    return '{"' + '","'.join(sorted(set(texts))) + '"}' if texts else "{}"
