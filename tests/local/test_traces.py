"""Traces: from a client's `traceparent` through Envoy and the worker to the receiver, and into both logs."""

import json
import secrets
from itertools import pairwise

import grpc
import httpx
import pytest

from ordernumbers.v1.orders_pb2 import OrderNumbersRequest
from tests.support.callers import METHOD, ROUTE
from tests.support.databases import open_folder
from tests.support.otlp import otlp_receiver
from tests.support.stack import Up, local_settings, wait_until


@pytest.fixture(scope="module")
def receiver():
    with otlp_receiver() as receiver:
        yield receiver


def running(folder, **settings):
    return Up(local_settings(folder / ".data", workers=1, **settings), folder)


@pytest.fixture(scope="module")
def traced(receiver):
    """A service that traces every call."""
    with open_folder() as folder, running(folder, otlp_endpoint=receiver.endpoint, trace_ratio=1) as up:
        yield up.until_ready()


@pytest.fixture(scope="module")
def seldom_traced(receiver):
    """A service whose edge samples no call."""
    with open_folder() as folder, running(folder, otlp_endpoint=receiver.endpoint, trace_ratio=0) as up:
        yield up.until_ready()


@pytest.fixture(scope="module")
def untraced():
    """A service without a receiver of traces."""
    with open_folder() as folder, running(folder) as up:
        yield up.until_ready()


def key(up):
    return (up.settings.data_dir / "demo.key").read_text().strip()


def headers(up, traceparent=None):
    sent = {"authorization": f"Bearer {key(up)}"}
    return sent | ({"traceparent": traceparent} if traceparent else {})


def search(up, quantity=1, traceparent=None):
    sent = {"quantity": quantity}
    response = httpx.post(f"{up.rest_url}/v1/phone-numbers/search", json=sent, headers=headers(up, traceparent))
    assert response.status_code == 200, response.text
    return [row["number"] for row in response.json()["data"]]


def order(up, numbers, traceparent=None):
    return httpx.post(f"{up.rest_url}{ROUTE}", json={"numbers": numbers}, headers=headers(up, traceparent))


def order_by_grpc(up, numbers, traceparent):
    """Order directly at the worker, as an internal service does."""
    metadata = list(headers(up, traceparent).items())
    with grpc.insecure_channel(f"127.0.0.1:{up.settings.grpc_port}") as channel:
        call = channel.unary_unary(METHOD, OrderNumbersRequest.SerializeToString, None)
        return call(OrderNumbersRequest(numbers=numbers), metadata=metadata, timeout=10)


def new_traceparent(flag="01"):
    trace_id = secrets.token_hex(16)
    return trace_id, f"00-{trace_id}-{secrets.token_hex(8)}-{flag}"


def log_lines(up, request_id, count=2):
    """The lines of both logs about a call."""

    def lines():
        return [line for line in up.logs.splitlines() if request_id in line and '"message"' not in line]

    wait_until(lambda: len(lines()) == count)
    return [json.loads(line) for line in lines()]


def spans_of(receiver, trace_id, *names):
    """The spans of a trace by their names, once all of these have arrived. Both exporters send every few seconds."""

    def arrived():
        return {span.name for span in receiver.of_trace(trace_id)} >= set(names)

    wait_until(arrived, seconds_max=30, report=lambda: str(receiver.of_trace(trace_id)))
    return {span.name: span for span in receiver.of_trace(trace_id)}


RPC = METHOD.removeprefix("/")
SPANS = ("ingress", RPC, "wait", "transaction", "round trip")


# ---------------------------------------------------------------- the spans


def test_an_order_has_spans_from_the_edge_to_the_round_trips(traced, receiver):
    trace_id, traceparent = new_traceparent()
    response = order(traced, search(traced), traceparent)
    assert response.status_code == 200
    spans = spans_of(receiver, trace_id, *SPANS)
    edge, call, wait, transaction = (spans[name] for name in SPANS[:4])
    trips = [span for span in receiver.of_trace(trace_id) if span.name == "round trip"]
    assert edge.parent_id == traceparent.split("-")[2]
    assert (edge.service, call.service) == ("ordernumbers-edge", "ordernumbers")
    assert call.parent_id == edge.span_id
    assert wait.parent_id == transaction.parent_id == call.span_id
    assert {trip.parent_id for trip in trips} == {transaction.span_id}
    assert ["lock_numbers" in trip.attributes["ordernumbers.statements"] for trip in trips] == [True, False]
    assert trips[1].attributes["ordernumbers.statements"].split()[-1] == "commit"
    times = [call.started, wait.started, wait.ended, *(at for trip in trips for at in (trip.started, trip.ended))]
    assert all(before <= after for before, after in pairwise([*times, transaction.ended, call.ended]))
    assert call.attributes["ordernumbers.request_id"] == response.headers["x-request-id"]
    assert call.attributes["ordernumbers.code"] == "OK"
    assert not call.is_error


def test_a_transaction_is_linked_to_its_batch_and_the_batch_to_its_calls(traced, receiver):
    trace_id, traceparent = new_traceparent()
    assert order(traced, search(traced), traceparent).status_code == 200
    spans = spans_of(receiver, trace_id, *SPANS)
    (batch_id,) = spans["transaction"].linked
    wait_until(lambda: any(span.span_id == batch_id for span in receiver.spans))
    (batch,) = [span for span in receiver.spans if span.span_id == batch_id]
    assert spans[RPC].span_id in batch.linked
    assert (batch.name, batch.parent_id) == ("batch", "")
    assert batch.attributes["ordernumbers.writes"] >= 1
    assert batch.trace_id != trace_id


def test_a_call_without_a_traceparent_starts_a_trace_that_both_logs_name(traced, receiver):
    response = order(traced, search(traced))
    lines = log_lines(traced, response.headers["x-request-id"])
    (trace_id,) = {line["trace_id"] for line in lines}
    assert set(spans_of(receiver, trace_id, *SPANS)) == set(SPANS)


def test_a_refusal_is_no_error_of_ours_and_a_read_has_no_transaction(traced, receiver):
    trace_id, traceparent = new_traceparent()
    assert order(traced, ["+19995550100"], traceparent).status_code == 409
    spans = spans_of(receiver, trace_id, *SPANS)
    assert spans[RPC].attributes["ordernumbers.code"] == "INSUFFICIENT_INVENTORY"
    assert not spans[RPC].is_error
    trace_id, traceparent = new_traceparent()
    search(traced, traceparent=traceparent)
    names = set(spans_of(receiver, trace_id, "ingress", "ordernumbers.v1.PhoneNumberService/SearchNumbers"))
    assert names == {"ingress", "ordernumbers.v1.PhoneNumberService/SearchNumbers"}


def test_no_span_has_a_key_or_the_path_that_the_caller_sent(traced, receiver):
    trace_id, traceparent = new_traceparent()
    secret = key(traced)
    sent = headers(traced, traceparent) | {"tracestate": f"vendor={secret}"}
    httpx.get(f"{traced.rest_url}/v1/{secret}?key={secret}", headers=sent)
    spans_of(receiver, trace_id, "ingress")
    assert secret not in str(receiver.spans)


# ---------------------------------------------------------------- who samples


def assert_not_traced(up, receiver, trace_id):
    # A call that is traced at the worker itself. When its spans have come, those of the first would have, too.
    other_id, traceparent = new_traceparent()
    order_by_grpc(up, search(up), traceparent)
    spans_of(receiver, other_id, *SPANS[1:])
    assert receiver.of_trace(trace_id) == []


@pytest.mark.parametrize(
    "extra",
    [
        {"x-envoy-force-trace": "1"},
        {"x-envoy-force-trace": "1", "x-envoy-internal": "true", "x-forwarded-for": "10.0.0.1"},
        {"x-client-trace-id": "abc"},
        {"x-request-id": "00000000-0000-4000-8000-000000000000"},
        {"b3": "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1", "x-b3-sampled": "1"},
    ],
)
def test_no_header_has_a_call_traced(seldom_traced, receiver, extra):
    trace_id, traceparent = new_traceparent()
    sent = headers(seldom_traced, traceparent) | extra
    response = httpx.post(f"{seldom_traced.rest_url}/v1/phone-numbers/search", json={"quantity": 1}, headers=sent)
    assert response.status_code == 200
    assert_not_traced(seldom_traced, receiver, trace_id)


def test_a_stranger_cannot_have_a_call_traced_but_finds_its_trace_id_in_both_logs(seldom_traced, receiver):
    trace_id, traceparent = new_traceparent()
    response = order(seldom_traced, search(seldom_traced), traceparent)
    assert {line["trace_id"] for line in log_lines(seldom_traced, response.headers["x-request-id"])} == {trace_id}
    assert_not_traced(seldom_traced, receiver, trace_id)


def test_an_internal_caller_decides_by_its_flag(seldom_traced, receiver):
    untraced_id, traceparent = new_traceparent(flag="00")
    order_by_grpc(seldom_traced, search(seldom_traced), traceparent)
    traced_id, traceparent = new_traceparent(flag="03")
    order_by_grpc(seldom_traced, search(seldom_traced), traceparent)
    assert RPC in spans_of(receiver, traced_id, *SPANS[1:])
    assert receiver.of_trace(untraced_id) == []


# ---------------------------------------------------------------- without a receiver


def test_without_a_receiver_both_logs_have_the_trace_id(untraced):
    trace_id, traceparent = new_traceparent()
    response = order(untraced, search(untraced), traceparent)
    assert {line["trace_id"] for line in log_lines(untraced, response.headers["x-request-id"])} == {trace_id}


@pytest.mark.parametrize(
    "traceparent",
    [
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "no traceparent",
    ],
)
def test_a_malformed_traceparent_is_ignored(untraced, traceparent):
    response = order(untraced, ["+19995550100"], traceparent)
    assert response.status_code == 409
    of_edge, of_worker = sorted(log_lines(untraced, response.headers["x-request-id"]), key=lambda line: "code" in line)
    assert of_edge["trace_id"] is None
    assert "trace_id" not in of_worker


def test_a_traceparent_of_a_later_version_is_understood(untraced):
    trace_id = secrets.token_hex(16)
    response = order(untraced, ["+19995550100"], f"01-{trace_id}-b7ad6b7169203331-01-more")
    assert {line["trace_id"] for line in log_lines(untraced, response.headers["x-request-id"])} == {trace_id}


def test_a_receiver_that_is_away_disturbs_no_call(tmp_path):
    with open_folder() as folder, running(folder, otlp_endpoint="http://127.0.0.1:9", trace_ratio=1) as up:
        up.until_ready()
        numbers = search(up, quantity=3)
        assert [order(up, [number]).status_code for number in numbers] == [200] * 3
