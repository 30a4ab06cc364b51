"""The REST API as the clients need it: the models and the calls of openapi.json, without its rules.

The rules of the fields stay with the service. A shape that is not known here is refused by name.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Schema = Mapping[str, Any]

RULES = {
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "uniqueItems",
    "minimum",
    "maximum",
    "anyOf",
    "allOf",
}
SHAPES = {"type", "enum", "items", "format", "description", "$ref"}
TOLD_APART = {"InsufficientCredit", "InsufficientInventory", "LimitExceeded", "NotFound", "ValidationFailed"}
PLACES = ("path", "query")
IDEMPOTENCY_KEY = "#/components/parameters/IdempotencyKey"
SHORT_NAMES = {
    "SearchNumbers": "Search",
    "OrderNumbers": "Order",
    "BulkOrderNumbers": "BulkOrder",
    "HoldNumbers": "Hold",
    "BulkReleaseNumbers": "BulkRelease",
}


class UnknownShape(ValueError):
    """openapi.json has something that the clients cannot express. The message names it."""


@dataclass(frozen=True)
class Scalar:
    """A string, an integer, a boolean, or a time."""

    name: str


@dataclass(frozen=True)
class Choice:
    """One of some texts."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class ListOf:
    items: "Type"


@dataclass(frozen=True)
class Reference:
    """Another model."""

    name: str


@dataclass(frozen=True)
class Nullable:
    value: "Type"


Type = Scalar | Choice | ListOf | Reference | Nullable


@dataclass(frozen=True)
class Field:
    name: str
    type: Type
    is_required: bool
    description: str
    maximum: int | None = None


@dataclass(frozen=True)
class Model:
    name: str
    description: str
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Call:
    """One operation. What it returns is the member `data` of the response, or with a `meta` the whole response."""

    operation: str
    method: str
    path: str
    description: str
    path_fields: tuple[Field, ...]
    query: tuple[Field, ...]
    body: Model | None
    writes: bool
    """Whether it takes an idempotency key."""
    result: Type
    is_whole: bool
    returns: str
    errors: tuple[str, ...]
    """Those of its refusals that depend on the call. All calls may get the others."""

    @property
    def name(self) -> str:
        """Its name in the clients: `BulkOrder`."""
        return SHORT_NAMES.get(self.operation, self.operation)

    @property
    def is_paged(self) -> bool:
        return any(field.name == "cursor" for field in self.query)


@dataclass(frozen=True)
class Api:
    calls: tuple[Call, ...]
    responses: tuple[Model, ...]
    """What the calls return, what a refusal has as `data`, and all models inside."""
    codes: tuple[str, ...]

    def row_of(self, call: Call) -> Type:
        """Return what a list has, for a call that is paged."""
        (page,) = (model for model in self.responses if Reference(model.name) == call.result)
        (rows,) = (field.type for field in page.fields if isinstance(field.type, ListOf))
        return rows.items


def api_of(document: Schema) -> Api:
    """Return the API that an OpenAPI document describes. Raises UnknownShape."""
    operations = [
        (path, method, operation) for path, item in document["paths"].items() for method, operation in item.items()
    ]
    calls = tuple(_call(document, *each) for each in operations)
    schemas = document["components"]["schemas"]
    of_refusals = _type("ErrorResponse.data", schemas["ErrorResponse"]["properties"]["data"])
    codes = schemas["Error"]["properties"]["code"]["enum"]
    return Api(calls, _reached(document, [*(call.result for call in calls), of_refusals]), tuple(codes))


def _call(document: Schema, path: str, method: str, operation: Schema) -> Call:
    name, parameters = operation["operationId"], operation.get("parameters", [])
    described = [each for each in parameters if "$ref" not in each]
    if unknown := [each for each in parameters if each.get("$ref", IDEMPOTENCY_KEY) != IDEMPOTENCY_KEY]:
        raise UnknownShape(f"{name}: unknown parameter {unknown[0]['$ref']}")
    fields = {place: tuple(_parameter(name, each) for each in described if each["in"] == place) for place in PLACES}
    if len(fields["path"]) + len(fields["query"]) != len(described):
        raise UnknownShape(f"{name}: a parameter is neither in the path nor in the query")
    response = _resolved(document, _json_of(operation["responses"]["200"]))
    is_whole = "meta" in response["properties"]
    return Call(
        operation=name,
        method=method.upper(),
        path=path,
        description=operation["description"],
        path_fields=fields["path"],
        query=fields["query"],
        body=_model(document, _name_of(_json_of(operation["requestBody"]))) if "requestBody" in operation else None,
        writes=len(described) < len(parameters),
        result=_type(name, _json_of(operation["responses"]["200"]) if is_whole else response["properties"]["data"]),
        is_whole=is_whole,
        returns=operation["responses"]["200"]["description"],
        errors=tuple(sorted(set(_errors(document, operation)))),
    )


def _errors(document: Schema, operation: Schema) -> Iterable[str]:
    for status, response in operation["responses"].items():
        if status != "200":
            schema = _json_of(_resolved(document, response))
            names = [_name_of(each) for each in schema.get("oneOf", [schema])]
            yield from (name for name in names if name in TOLD_APART)


def _json_of(content: Schema) -> Schema:
    """Return the schema of a body."""
    schema: Schema = content["content"]["application/json"]["schema"]
    return schema


def _name_of(reference: Schema) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _resolved(document: Schema, schema: Schema) -> Schema:
    """Return what a `$ref` names, or the schema itself."""
    found: Any = document
    for part in schema["$ref"].split("/")[1:] if "$ref" in schema else ():
        found = found[part]
    return found if "$ref" in schema else schema


def _parameter(operation: str, parameter: Schema) -> Field:
    described = parameter["schema"] | {"description": parameter["description"]}
    return _field(operation, parameter["name"], described, is_required=parameter["required"])


def _reached(document: Schema, types: Iterable[Type]) -> tuple[Model, ...]:
    """Return the models that the types name, and those inside of them, innermost first."""
    found: dict[str, Model] = {}

    def visit(type_: Type) -> None:
        match type_:
            case ListOf(inner) | Nullable(inner):
                visit(inner)
            case Reference(name) if name not in found:
                model = _model(document, name)
                for field in model.fields:
                    visit(field.type)
                found[name] = model

    for type_ in types:
        visit(type_)
    return tuple(found.values())


def _model(document: Schema, name: str) -> Model:
    schema = document["components"]["schemas"][name]
    if unknown := schema.keys() - {"type", "description", "properties", "required", "additionalProperties"}:
        raise UnknownShape(f"{name}: unknown keyword {min(unknown)}")
    if schema["type"] != "object" or schema.get("additionalProperties", False) is not False:
        raise UnknownShape(f"{name}: not an object with fixed members")
    required = schema.get("required", ())
    members = {key: value for key, value in schema["properties"].items() if key != "success"}
    fields = [_field(name, key, value, is_required=key in required) for key, value in members.items()]
    return Model(name, schema["description"], tuple(fields))


def _field(model: str, name: str, schema: Schema, *, is_required: bool) -> Field:
    type_ = _type(f"{model}.{name}", schema)
    if isinstance(type_, Nullable) and not is_required:  # null counts as absent
        type_ = type_.value
    return Field(name, type_, is_required, schema["description"], schema.get("maximum"))


def _type(where: str, schema: Schema) -> Type:
    if unknown := schema.keys() - RULES - SHAPES:
        raise UnknownShape(f"{where}: unknown keyword {min(unknown)}")
    match schema:
        case {"$ref": _}:
            return Reference(_name_of(schema))
        case {"type": [inner, "null"]}:
            not_null = {"enum": [each for each in schema["enum"] if each is not None]} if "enum" in schema else {}
            return Nullable(_type(where, {**schema, "type": inner, **not_null}))
        case {"type": "string", "enum": values}:
            return Choice(tuple(values))
        case {"type": "string", "format": "date-time"}:
            return Scalar("time")
        case {"type": "array", "items": items}:
            return ListOf(_type(where, items))
        case {"type": "string" | "integer" | "boolean" as name} if "enum" not in schema:
            return Scalar(name)
    raise UnknownShape(f"{where}: unknown shape")


def snake_case(name: str) -> str:
    """Return `BulkOrder` as `bulk_order`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
