"""The generated half of the TypeScript client: models.ts and client.ts."""

import json
import textwrap
from collections.abc import Iterable

from clients.api import Api, Call, Choice, ListOf, Model, Nullable, Reference, Scalar, Type

SCALARS = {"string": "string", "integer": "number", "boolean": "boolean", "time": "string"}
GENERATED = "Generated from openapi.json by clients/generate.py. Do not edit it."
LINE_LENGTH = 112


def models(api: Api) -> str:
    """Return models.ts."""
    codes = f"{_comment(['The code of a refusal.'])}\nexport type ErrorCode =\n  | "
    codes += "\n  | ".join(map(json.dumps, api.codes)) + ";"
    requests = [call.body for call in api.calls if call.body]
    requests += [
        Model(_query_name(call), f"Which of them: see {call.name}.", call.query) for call in api.calls if call.query
    ]
    parts = [f"/** What the calls take and return. {GENERATED} */", codes]
    parts += [_interface(model, "readonly ") for model in requests] + [_interface(model, "") for model in api.responses]
    return "\n\n".join(parts) + "\n"


def client(api: Api) -> str:
    """Return client.ts."""
    methods = [text for call in api.calls for text in _methods(api, call)]
    names = sorted({name for call in api.calls for name in _names(api, call)})
    return "\n".join(
        [
            f"/** The client with its calls. {GENERATED} */",
            "import type {\n  " + ",\n  ".join(names) + ',\n} from "./models.js";',
            'import { pathOf, Transport, type CallOptions, type WriteOptions } from "./transport.js";',
            "",
            "/** A client for OrderNumbers. It sends a call again where that may help. */",
            "export class Client extends Transport {",
            textwrap.indent("\n\n".join(methods), "  "),
            "}\n",
        ]
    )


def _names(api: Api, call: Call) -> Iterable[str]:
    """Return the models that the methods of a call name."""
    yield from (model.name for model in api.responses if model.name in _type(call.result))
    if request := _request_type(call):
        yield request
    if call.is_paged:
        yield _type(api.row_of(call))


def _interface(model: Model, prefix: str) -> str:
    fields = [
        f"{_comment([field.description])}\n{prefix}{field.name}{'' if field.is_required else '?'}: "
        f"{prefix if isinstance(field.type, ListOf) else ''}{_type(field.type)};"
        for field in model.fields
    ]
    body = textwrap.indent("\n".join(fields), "  ")
    return f"{_comment([model.description])}\nexport interface {model.name} {{\n{body}\n}}"


def _methods(api: Api, call: Call) -> Iterable[str]:
    ids = [f"{field.name}: {_type(field.type)}" for field in call.path_fields]
    request, type_ = _request_type(call), _type(call.result)
    arguments = [*ids, *([_request_argument(call, request)] if request else [])]
    arguments += [f"options: {'WriteOptions' if call.writes else 'CallOptions'} = {{}}"]
    sent = [f'method: "{call.method}"', f"path: {_path(call)}"]
    sent += ["body: request"] if call.body else ["query"] if call.query else []
    sent += ["isWrite: true"] if call.writes else []
    sent += ["isWhole: true"] if call.is_whole else []
    name = _method_name(call.name)
    yield "\n".join(
        [
            _comment([call.description, f"@returns {call.returns}", f"@throws {', '.join(call.errors)}, or others."]),
            f"{name}({', '.join(arguments)}): Promise<{type_}> {{",
            f"  return this.send<{type_}>(",
            f"    {{ {', '.join(sent)} }},",
            "    options,",
            "  );",
            "}",
        ]
    )
    if call.is_paged:
        limit = next(field.maximum for field in call.query if field.name == "limit")
        yield "\n".join(
            [
                _comment([f"Goes through all pages of `{name}`."]),
                f"async *{name.replace('list', 'all')}(",
                f'  query: Omit<{request}, "limit" | "cursor"> = {{}},',
                f"  options: CallOptions = {{}},\n): AsyncGenerator<{_type(api.row_of(call))}, void> {{",
                "  let cursor: string | null = null;",
                "  do {",
                f"    const page: {type_} = await this.{name}(",
                f"      {{ ...query, limit: {limit}, ...(cursor === null ? {{}} : {{ cursor }}) }},",
                "      options,\n    );",
                "    yield* page.data;",
                "    cursor = page.meta.next_cursor;",
                "  } while (cursor !== null);",
                "}",
            ]
        )


def _method_name(name: str) -> str:
    return name[0].lower() + name[1:]


def _query_name(call: Call) -> str:
    return f"{call.operation}Query"


def _request_type(call: Call) -> str | None:
    return call.body.name if call.body else _query_name(call) if call.query else None


def _request_argument(call: Call, request: str) -> str:
    fields = call.body.fields if call.body else call.query
    default = "" if any(field.is_required for field in fields) else " = {}"
    return f"{'request' if call.body else 'query'}: {request}{default}"


def _path(call: Call) -> str:
    ids = ", ".join(field.name for field in call.path_fields)
    return f'pathOf("{call.path}", {{ {ids} }})' if ids else f'"{call.path}"'


def _type(type_: Type) -> str:
    match type_:
        case Scalar(name):
            return SCALARS[name]
        case Choice(values):
            return " | ".join(map(json.dumps, values))
        case ListOf(items):
            return f"{_type(items)}[]"
        case Reference(name):
            return name
        case Nullable(value):
            return f"{_type(value)} | null"


def _comment(paragraphs: Iterable[str]) -> str:
    lines = [line for text in paragraphs for part in text.split("\n\n") for line in ["", *_wrapped(part)]][1:]
    if len(lines) == 1:
        return f"/** {lines[0]} */"
    return "\n".join(["/**", *(f" * {line}".rstrip() for line in lines), " */"])


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text.replace("*/", "*\\/"), LINE_LENGTH, break_long_words=False, break_on_hyphens=False)
