"""What only gRPC has: undecodable messages, metadata, health, reflection. And `buf curl`, as the README shows it."""

import json
import subprocess
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from ulid import ULID

from ordernumbers.v1 import errors_pb2
from tests.support.callers import METHOD, TIMEOUT_SECONDS, failure, refusal_of

SERVICE = "ordernumbers.v1.PhoneNumberService"
DESCRIPTORS = Path(errors_pb2.__file__).parent / "descriptors.binpb"


@pytest.fixture(params=["direct", "edge"])
def target(request, service):
    return service.grpc_targets[0] if request.param == "direct" else service.edge_target


@pytest.fixture
def channel(target):
    with grpc.insecure_channel(target) as channel:
        yield channel


def error_of(channel, key, raw, **metadata):
    """Send the bytes as a message, which must be refused, and return the error."""
    sent = [("authorization", f"Bearer {key}"), *metadata.items()]
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(METHOD)(raw, metadata=sent, timeout=TIMEOUT_SECONDS)
    return refused.value


@pytest.mark.parametrize("raw", [b"\xff", b"\x0a\x05abc", b"\x0a\x02\xff\xfe", b"\x0a\xff\xff\xff\xff\x0f", b"{}"])
def test_undecodable_bytes_are_a_malformed_request(channel, customer, raw):
    response = refusal_of(error_of(channel, customer.key, raw))
    assert (response.status, response.body) == (400, failure("INVALID_INPUT", "malformed request", response.request_id))


def test_the_key_is_checked_before_the_message_is_decoded(channel, customer):
    assert refusal_of(error_of(channel, customer.unknown_key(), b"\xff")).status == 401
    assert refusal_of(error_of(channel, customer.new_key("numbers:read"), b"\xff")).status == 403


def test_unknown_fields_are_ignored(channel, customer):
    """A client may be newer than the server and send fields that the server does not know."""
    # Field 2046, which the contract does not have. 422 because there are no numbers.
    assert refusal_of(error_of(channel, customer.key, b"\xf2\x7f\x03abc")).status == 422


def test_a_server_keeps_a_request_id_and_the_edge_replaces_it(service, customer):
    ours = str(ULID())
    for target, is_kept in ((service.grpc_targets[0], True), (service.edge_target, False)):
        with grpc.insecure_channel(target) as channel:
            response = refusal_of(error_of(channel, customer.key, b"\xff", **{"x-request-id": ours}))
        assert (response.request_id == ours) is is_kept


@pytest.mark.parametrize("invalid", ["", "x", "0" * 27, "8" + "0" * 25, "01arz3ndektsv4rrffq69g5fav"])
def test_a_request_id_that_is_not_a_ulid_is_replaced(service, customer, invalid):
    with grpc.insecure_channel(service.grpc_targets[0]) as channel:
        response = refusal_of(error_of(channel, customer.key, b"\xff", **{"x-request-id": invalid}))
    assert response.request_id != invalid
    assert ULID.from_str(response.request_id)


def test_the_internal_http_status_header_does_not_leave_the_edge(service, customer):
    with grpc.insecure_channel(service.edge_target) as channel:
        response = refusal_of(error_of(channel, customer.key, b"\xff"))
    assert "http-status" not in response.headers


def test_two_authorization_headers_are_refused(channel, customer):
    call = channel.unary_unary(METHOD)
    twice = [("authorization", f"Bearer {customer.key}")] * 2
    with pytest.raises(grpc.RpcError) as refused:
        call(b"", metadata=twice, timeout=TIMEOUT_SECONDS)
    assert refusal_of(refused.value).status == 401


def test_a_message_longer_than_any_order_is_refused(channel, customer):
    # Field 5, the label, with 131,072 bytes.
    error = error_of(channel, customer.key, b"\x2a\x80\x80\x08" + b"a" * 131072)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_health_check_knows_the_server_and_the_service(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ("", SERVICE):
        response = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_SECONDS)
        assert response.status == health_pb2.HealthCheckResponse.SERVING


def reflected(target):
    """By reflection, the names of the services and of the files that describe ours."""
    with grpc.insecure_channel(target) as channel:
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
        ]
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        services, files = stub.ServerReflectionInfo(iter(requests), timeout=TIMEOUT_SECONDS)
    protos = [FileDescriptorProto.FromString(raw) for raw in files.file_descriptor_response.file_descriptor_proto]
    return {s.name for s in services.list_services_response.service}, {proto.name for proto in protos}


def test_a_server_offers_reflection(service):
    services, files = reflected(service.grpc_targets[0])
    assert services == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert "ordernumbers/v1/phone_number_service.proto" in files


def test_the_edge_offers_no_reflection_by_default(service):
    with pytest.raises(grpc.RpcError) as refused:
        reflected(service.edge_target)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("through", ["edge", "direct"])
def test_buf_curl_orders_a_number(service, customer, through):
    """With the contract's descriptors through the edge, and by reflection at a server."""
    target = service.edge_target if through == "edge" else service.grpc_targets[0]
    schema = ["--schema", str(DESCRIPTORS)] if through == "edge" else []
    numbers = customer.numbers(1)
    command = ["buf", "curl", "--protocol", "grpc", "--http2-prior-knowledge", *schema]
    header, data = f"authorization: Bearer {customer.key}", json.dumps({"numbers": numbers})
    done = subprocess.run(
        [*command, "-H", header, "-d", data, f"http://{target}{METHOD}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [row["number"] for row in json.loads(done.stdout)["data"]] == numbers
