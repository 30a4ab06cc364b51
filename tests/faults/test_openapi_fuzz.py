"""Requests that Schemathesis makes from openapi.json, good and bad. Each response is as documented, and none is 5xx."""

import itertools
from collections import Counter

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig

from tests.support.openapi import BY_RPC, DOCUMENT, assert_documented

CONFIG = {
    # Each request has the key of a customer. Schemathesis itself then tries it without a key, and with a wrong one.
    "generation": {"with-security-parameters": False},
    # A request that fits its schema may name what is sold or does not exist. It may also break a rule that no schema
    # has. There are three: the host of a URL, a label's visible character, and a campaign's state.
    "checks": {"positive_data_acceptance": {"expected-statuses": [200, 402, 404, 409, 422]}},
}


@pytest.fixture(scope="module")
def operations():
    """Schemathesis' own operations, by RPC."""
    schema = schemathesis.openapi.from_dict(DOCUMENT, config=SchemathesisConfig.from_dict(CONFIG))
    found = [result.ok() for result in schema.get_all_operations()]
    return {operation.definition.raw["operationId"]: operation for operation in found}


@st.composite
def good_cases(draw, operation, proper, free):
    """A case that fits the schemas. All or some of its fields have values that mean something to the service.

    `free` are numbers, each for one case. Hypothesis draws the same value again and again, which could be sold once.
    """
    case = draw(operation.as_strategy(GenerationMode.POSITIVE))
    all_fields = draw(st.sampled_from([True, True, False]))
    for fields in (case.path_parameters, case.query, case.body):
        for name in proper.keys() & fields.keys() if isinstance(fields, dict) else ():
            if all_fields or draw(st.booleans()):
                fields[name] = [next(free)] if name == "numbers" else draw(st.sampled_from(proper[name]))
    return case


def test_openapi_json_describes_every_response_to_a_good_request(service, known, operations, times):
    count = times(200, 10_000)
    free = itertools.cycle(known.customer.numbers(count))
    owned = known.customer.owned()
    rpcs = [*["OrderNumbers"] * 4, *sorted(operations)]
    cases = st.sampled_from(rpcs).flatmap(lambda rpc: good_cases(operations[rpc], known.proper, free))
    seen = send_all(service, known.customer, cases, count)
    assert seen["OrderNumbers", 200]
    assert known.customer.owned() - owned


def test_openapi_json_describes_every_response_to_a_bad_request(service, customer, operations, times):
    bad = GenerationMode.NEGATIVE
    cases = st.sampled_from(sorted(operations)).flatmap(lambda rpc: operations[rpc].as_strategy(bad))
    seen = send_all(service, customer, cases, times(200, 10_000))
    assert {400, 422} <= {status for _, status in seen}


def send_all(service, customer, cases, count):
    """Send so many cases, and count RPCs and statuses."""
    seen = Counter()
    headers = {"Authorization": f"Bearer {customer.key}"}
    with requests.Session() as session:

        @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(cases)
        def send(case):
            response = case.call_and_validate(base_url=service.rest_url, session=session, headers=headers)
            rpc = case.operation.definition.raw["operationId"]
            seen[rpc, response.status_code] += 1
            assert response.status_code < 500
            received = {name: values[0] for name, values in response.headers.items()}
            assert_documented(BY_RPC[rpc], response.status_code, received, response.json())

        send()
    print(sorted(seen.items()))
    assert seen.total() >= count
    return seen
