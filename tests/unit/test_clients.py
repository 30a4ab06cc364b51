"""What the clients are generated from: a shape of openapi.json that is not known stops the generation."""

import copy
import json

import pytest

from clients import python_code, typescript_code
from clients.api import UnknownShape, api_of
from clients.generate import OPENAPI

DOCUMENT = json.loads(OPENAPI.read_text())


@pytest.fixture
def document():
    return copy.deepcopy(DOCUMENT)


@pytest.mark.parametrize(
    ("member", "refused"),
    [
        ({"oneOf": []}, "unknown keyword oneOf"),
        ({"type": "number"}, "unknown shape"),
        ({"type": "object"}, "unknown shape"),
        ({"type": "integer", "enum": [1, 2]}, "unknown shape"),
        ({"type": ["string", "integer"]}, "unknown shape"),
    ],
)
def test_an_unknown_shape_of_a_member_is_named(document, member, refused):
    document["components"]["schemas"]["Hold"]["properties"]["id"] = {**member, "description": "The id."}
    with pytest.raises(UnknownShape, match=rf"^Hold\.id: {refused}$"):
        api_of(document)


def test_an_unknown_shape_of_a_model_is_named(document):
    document["components"]["schemas"]["Hold"]["additionalProperties"] = {"type": "string"}
    with pytest.raises(UnknownShape, match=r"^Hold: not an object with fixed members$"):
        api_of(document)


def test_an_unknown_place_of_a_parameter_is_named(document):
    document["paths"]["/v1/phone-numbers/{id}"]["get"]["parameters"][0]["in"] = "cookie"
    with pytest.raises(UnknownShape, match=r"^GetNumber: a parameter is neither in the path nor in the query$"):
        api_of(document)


def test_a_new_field_reaches_both_clients(document):
    schemas = document["components"]["schemas"]
    schemas["OrderNumbersRequest"]["properties"]["colour"] = {"type": ["string", "null"], "description": "Its colour."}
    schemas["PhoneNumber"]["properties"]["colour"] = {"type": "string", "description": "Its colour."}
    api = api_of(document)
    assert "colour: str | None = None" in python_code.models(api)
    assert "colour=colour" in python_code.clients(api)
    assert typescript_code.models(api).count("colour?: string;") == 2
