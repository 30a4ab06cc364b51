"""No key, and nothing else that a caller sends, is ever in a log, a response or a traceback."""

import grpc
import httpx
import pytest

from server.run.embedded.demo import KEY_FILE
from tests.support.callers import ROUTE, RPCS, SERVICE, Grpc, Rest
from tests.support.stack import Up, is_worker, kill, local_settings, wait_until
from tests.support.wire import Wire, framed, grpc_headers

ID = "0190b0a0-0000-7000-8000-000000000001"
SECRET = "canary-7f3a9c1e5b"


@pytest.mark.parametrize("state", ["healthy", "with killed processes"])
def test_neither_a_key_nor_a_planted_secret_is_in_a_response_or_a_log(open_path, state):
    settings = local_settings(open_path / ".data")
    with Up(settings, open_path) as up, httpx.Client(base_url=up.rest_url, timeout=20) as client:
        up.until_ready()
        key = (settings.data_dir / KEY_FILE).read_text().strip()
        responses = []
        with grpc.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
            for call in (Rest(client), Grpc(channel)):
                responses += texts_of_refused_orders(call, key)
                responses += texts_of_every_rpc(call, key)
            responses += texts_of_improper_requests(client, key)
            for port in (settings.grpc_port, settings.rest_port):
                responses += texts_of_improper_grpc_calls(port, key)
            if state == "with killed processes":
                kill(*(process for process in up.processes() if "postgres" in process.name()))
                responses += texts_of_refused_orders(Rest(client), key) + texts_of_refused_orders(Grpc(channel), key)
                kill(next(process for process in up.processes() if is_worker(process)))
                wait_until(lambda: httpx.get(f"{up.rest_url}/healthz").is_success)
                responses += texts_of_refused_orders(Rest(client), key)
        assert len(responses) > 20
    logs = up.logs + (settings.data_dir / "postgres.log").read_text()
    texts = "".join(responses) + logs
    for secret in (key, SECRET):
        assert secret not in texts
    # Without the tag, which is not secret.
    assert key.removeprefix("am_live_")[6:] not in texts


def texts_of_refused_orders(call, key):
    """Responses to orders that hold the secret wherever a valid request can."""
    requests = [
        {"numbers": ["+19999999999"], "label": SECRET},
        {"numbers": [SECRET]},
        {"numbers": ["+19999999999"], "inbound_url": f"https://user:{SECRET}@example.com/"},
        {"numbers": ["+19999999999"], "status_url": f"https://example.com/{SECRET}"},
        {"numbers": ["+19999999999"], "campaign_id": SECRET},
    ]
    responses = []
    for request in requests:
        for idempotency_key in (None, SECRET, f"{SECRET} "):
            for authorization in (key, key[:-1], f"Bearer {SECRET}"):
                try:
                    responses.append(
                        call(authorization, idempotency_key=idempotency_key, **request).raw.decode("latin-1")
                    )
                except (grpc.RpcError, AssertionError, httpx.TransportError):  # no response, which reveals nothing
                    continue
    return responses


def texts_of_every_rpc(call, key):
    """Responses to calls of each RPC that have the secret in one of their texts. Some of these texts are allowed."""
    responses = []
    for rpc in RPCS:
        for field in SERVICE.methods_by_name[rpc].input_type.fields:
            if field.type == field.TYPE_STRING:
                request = {"quantity": 1, "numbers": ["+19999999999"], "ids": [ID], "id": ID, "campaign_id": ID}
                named = {name: value for name, value in request.items() if name in fields_of(rpc)}
                response = call.rpc(rpc, key, **named | {field.name: [SECRET] if field.is_repeated else SECRET})
                responses.append(response.raw.decode("latin-1"))
    return responses


def fields_of(rpc):
    return {field.name for field in SERVICE.methods_by_name[rpc].input_type.fields}


def texts_of_improper_requests(client, key):
    """Responses to invalid paths, queries, bodies and headers."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json", "x-secret": SECRET}
    responses = [
        client.post(ROUTE, content=f'{{"numbers": "{SECRET}"}}'.encode(), headers=headers),
        client.post(ROUTE, content=SECRET.encode(), headers=headers),
        client.post(f"{ROUTE}?key={SECRET}", content=b"{}", headers=headers),
        client.post(ROUTE, content=b"{}", headers=headers | {"content-type": SECRET}),
    ]
    for secret in (key, SECRET):
        responses += [
            client.post(f"/v1/{secret}", content=b"{}", headers=headers),
            client.post(f"{ROUTE}/{secret}", content=b"{}", headers=headers),
            client.request(secret, ROUTE, content=b"{}", headers=headers),
            client.post(
                ROUTE, content=b"{}", headers=headers | {"authorization": f"Bearer {secret}\xa0".encode("latin-1")}
            ),
            client.post(ROUTE, content=b"{}", headers=headers | {"user-agent": f"{secret}\xff".encode("latin-1")}),
            client.post(ROUTE, content=b"{}", headers=headers | {"x-request-id": secret, "host": secret}),
        ]
    return [response.text for response in responses]


def texts_of_improper_grpc_calls(port, key):
    """Responses to gRPC calls with a secret where gRPC or HTTP does not allow it."""
    responses = []
    for secret in (key, SECRET):
        for changed in (
            {"authorization": f"Bearer {secret}\xa0".encode("latin-1")},
            {"x-other": f"{secret}\xff".encode("latin-1")},
            {"x-other": f"{secret}é".encode()},
            {"x-other": f"{secret}\0"},
            {"x-bin": f"{secret}%"},
            {f"X-{secret}": "x"},
            {"grpc-timeout": secret},
            {"grpc-encoding": secret},
            {"te": secret},
            {":path": f"/{secret}"},
            {":path": f"/{SERVICE.full_name}/{secret}"},
            {":method": secret},
            {":scheme": secret},
            {":authority": secret},
            {"host": secret},
        ):
            with Wire(port) as wire:
                stream = wire.start(grpc_headers(port, key, changed))
                wire.send(stream, framed(secret.encode()), ends=True)
                text = str(wire.response(stream))
            # gRPC itself sends this back, and only to the caller.
            responses.append(text.replace(f"Illegal header key: X-{secret}", ""))
    return responses
