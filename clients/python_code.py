"""The generated half of the Python client: models.py and client.py."""

import json
import textwrap
from collections.abc import Iterable, Sequence

from clients.api import Api, Call, Choice, Field, ListOf, Model, Nullable, Reference, Scalar, Type, snake_case

SCALARS = {"string": "str", "integer": "int", "boolean": "bool", "time": "datetime"}
GENERATED = "Generated from openapi.json by clients/generate.py. Do not edit it."
LINE_LENGTH = 108
PARAGRAPHS = "\n\n"


def models(api: Api) -> str:
    """Return models.py."""
    codes = f"ErrorCode = {_type(Choice(api.codes))}\n" + _docstring(["The code of a refusal."])
    head = [f'"""What the calls return. {GENERATED}"""', "from dataclasses import dataclass", _IMPORTS, codes]
    return "\n\n".join([*head, *map(_model, api.responses)])


_IMPORTS = "from datetime import datetime\nfrom typing import Literal"


def clients(api: Api) -> str:
    """Return client.py."""
    returned = {_type(call.result) for call in api.calls} | {
        _type(api.row_of(call)) for call in api.calls if call.is_paged
    }
    references = ", ".join(model.name for model in api.responses if returned & {model.name, f"list[{model.name}]"})
    return "\n".join(
        [
            f'"""Both clients with their calls. {GENERATED}"""',
            "from collections.abc import AsyncIterator, Iterator, Sequence",
            "from typing import Literal",
            "from ordernumbers_client.call import Call, given, path_of",
            f"from ordernumbers_client.models import {references}",
            "from ordernumbers_client.transport import AsyncTransport, SyncTransport",
            *_client("Client", "SyncTransport", "A client for programs with threads.", api, is_async=False),
            *_client("AsyncClient", "AsyncTransport", "A client for asyncio.", api, is_async=True),
        ]
    )


def _model(model: Model) -> str:
    lines = ["@dataclass(frozen=True, kw_only=True, slots=True)", f"class {model.name}:"]
    lines += [_indented(_docstring(model.description.split(PARAGRAPHS)))]
    for field in model.fields:
        lines.append(f"    {field.name}: {_type(field.type)}{'' if field.is_required else ' | None = None'}")
        lines.append(_indented(_docstring(field.description.split(PARAGRAPHS))))
    return "\n".join(lines)


def _client(name: str, base: str, description: str, api: Api, *, is_async: bool) -> Iterable[str]:
    yield f"class {name}({base}):"
    yield _indented(_docstring([description + " See its base class for the arguments."]))
    for call in api.calls:
        yield _indented(_method(call, is_async=is_async))
        if call.is_paged:
            yield _indented(_iterator(call, _type(api.row_of(call)), is_async=is_async))


def _method(call: Call, *, is_async: bool) -> str:
    fields = [*call.path_fields, *call.query, *(call.body.fields if call.body else ())]
    keywords = ["idempotency_key: str | None = None"] if call.writes else []
    send = "return await self._send" if is_async else "return self._send"
    arguments = [f'"{call.method}"', _path(call), _type(call.result)]
    arguments += [f"query=given({_same(call.query)})"] if call.query else []
    arguments += [f"body=given({_same(call.body.fields)})"] if call.body else []
    arguments += ["is_write=True, idempotency_key=idempotency_key"] if call.writes else []
    arguments += ["is_whole=True"] if call.is_whole else []
    return "\n".join(
        [
            _signature(snake_case(call.name), fields, keywords, _type(call.result), "async " if is_async else ""),
            _indented(_docstring(_about(call, fields))),
            f"    {send}(Call({', '.join(arguments)}), deadline_seconds)",
        ]
    )


def _iterator(call: Call, item: str, *, is_async: bool) -> str:
    """Return the method that goes through all pages of a list."""
    filters = [field for field in call.query if field.name not in ("limit", "cursor")]
    limit = next(field.maximum for field in call.query if field.name == "limit")
    result = f"AsyncIterator[{item}]" if is_async else f"Iterator[{item}]"
    name, page = call.name.replace("List", "all_").lower(), f"self.{snake_case(call.name)}"
    about = [f"Goes through all pages of `{snake_case(call.name)}`.", *_arguments(filters)]
    return "\n".join(
        [
            _signature(name, filters, [], result, "async " if is_async else ""),
            _indented(_docstring(about)),
            "    cursor: str | None = None",
            "    while True:",
            f"        page = {'await ' if is_async else ''}{page}(limit={limit}, cursor=cursor, {_same(filters)}, "
            "deadline_seconds=deadline_seconds)",
            "        for row in page.data:\n            yield row" if is_async else "        yield from page.data",
            "        cursor = page.meta.next_cursor",
            "        if cursor is None:\n            return",
        ]
    )


def _signature(name: str, fields: Sequence[Field], keywords: Sequence[str], result: str, prefix: str) -> str:
    first = [f"{field.name}: {_argument_type(field.type)}" for field in fields if field.is_required]
    rest = [f"{field.name}: {_argument_type(field.type)} | None = None" for field in fields if not field.is_required]
    rest += [*keywords, "deadline_seconds: float | None = None"]
    return f"{prefix}def {name}({', '.join(['self', *first, '*', *rest])}) -> {result}:"


def _about(call: Call, fields: Sequence[Field]) -> list[str]:
    keys = (
        ["idempotency_key: Of an earlier call, to send that one again. When absent, a new one."] if call.writes else []
    )
    return [
        *call.description.split(PARAGRAPHS),
        *_arguments(fields, keys),
        _section("Returns", [call.returns]),
        _section("Raises", [f"{', '.join(call.errors)}, or another OrderNumbersError."]),
    ]


def _arguments(fields: Iterable[Field], more: Sequence[str] = ()) -> list[str]:
    described = [f"{field.name}: {field.description}" for field in fields] + [*more]
    return [_section("Args", described)] if described else []


def _section(name: str, entries: Iterable[str]) -> str:
    return "\n".join([f"{name}:", *(_indented(_wrapped(entry, hanging="    ")) for entry in entries)])


def _same(fields: Iterable[Field]) -> str:
    """Return keyword arguments from variables of the same names."""
    return ", ".join(f"{field.name}={field.name}" for field in fields)


def _path(call: Call) -> str:
    return f'path_of("{call.path}", {_same(call.path_fields)})' if call.path_fields else f'"{call.path}"'


def _argument_type(type_: Type) -> str:
    return f"Sequence[{_type(type_.items)}]" if isinstance(type_, ListOf) else _type(type_)


def _type(type_: Type) -> str:
    match type_:
        case Scalar(name):
            return SCALARS[name]
        case Choice(values):
            return f"Literal{json.dumps(values)}"
        case ListOf(items):
            return f"list[{_type(items)}]"
        case Reference(name):
            return name
        case Nullable(value):
            return f"{_type(value)} | None"


def _docstring(paragraphs: Iterable[str]) -> str:
    """Return a docstring. A paragraph that has lines already stays as it is."""
    text = PARAGRAPHS.join(each if "\n" in each else _wrapped(each) for each in paragraphs).replace("\\", "\\\\")
    return f'"""{text}\n"""' if "\n" in text or text.endswith('"') else f'"""{text}"""'


def _wrapped(text: str, hanging: str = "") -> str:
    width = LINE_LENGTH - len(hanging)
    return textwrap.fill(text, width, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False)


def _indented(text: str) -> str:
    return textwrap.indent(text, "    ")
