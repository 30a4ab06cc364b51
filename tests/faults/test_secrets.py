"""A canary: no key and nothing else that a caller sends is ever in a log, a refusal's text or a trace."""

import grpc
import httpx
import pytest

from server.run.embedded.demo import KEY_FILE
from tests.faults.conftest import is_worker, kill
from tests.support.callers import ROUTE, Grpc, Rest
from tests.support.stack import Up, local_settings, wait_until
from tests.support.wire import Wire, framed, grpc_headers

SERVICE = "ordernumbers.v1.PhoneNumberService"
SECRET = "canary-7f3a9c1e5b"


@pytest.mark.parametrize("level", ["calm", "broken"])
def test_neither_the_demo_key_nor_a_planted_secret_is_ever_told(open_path, level):
    settings = local_settings(open_path / ".data")
    with Up(settings, open_path) as up, httpx.Client(base_url=up.rest_url, timeout=20) as client:
        up.until_ready()
        key = (settings.data_dir / KEY_FILE).read_text().strip()
        answers = []
        with grpc.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
            for call in (Rest(client), Grpc(channel)):
                answers += spoken(call, key)
            answers += improper(client, key)
            answers += [told for port in (settings.grpc_port, settings.rest_port) for told in off_the_wire(port, key)]
            if level == "broken":
                kill(*(process for process in up.processes() if "postgres" in process.name()))
                answers += spoken(Rest(client), key) + spoken(Grpc(channel), key)
                kill(next(process for process in up.processes() if is_worker(process)))
                wait_until(lambda: httpx.get(f"{up.rest_url}/healthz").is_success)
                answers += spoken(Rest(client), key)
        assert len(answers) > 20
    logs = up.logs + (settings.data_dir / "postgres.log").read_text()
    told = "".join(answers) + logs
    for secret in (key, SECRET):
        assert secret not in told
    assert key.removeprefix("am_live_")[6:] not in told


def spoken(call, key):
    """What calls are answered that say the secret wherever they can."""
    requests = [
        {"numbers": ["+19999999999"], "label": SECRET},
        {"numbers": [SECRET]},
        {"numbers": ["+19999999999"], "inbound_url": f"https://user:{SECRET}@example.com/"},
        {"numbers": ["+19999999999"], "status_url": f"https://example.com/{SECRET}"},
        {"numbers": ["+19999999999"], "campaign_id": SECRET},
    ]
    answers = []
    for request in requests:
        for idempotency_key in (None, SECRET, f"{SECRET} "):
            for authorization in (key, key[:-1], f"Bearer {SECRET}"):
                try:
                    answers.append(
                        call(authorization, idempotency_key=idempotency_key, **request).raw.decode("latin-1")
                    )
                except (grpc.RpcError, AssertionError, httpx.TransportError):  # cut off: that says nothing either
                    continue
    return answers


def improper(client, key):
    """Paths, queries, bodies and headers that no one should send."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json", "x-secret": SECRET}
    answers = [
        client.post(ROUTE, content=f'{{"numbers": "{SECRET}"}}'.encode(), headers=headers),
        client.post(ROUTE, content=SECRET.encode(), headers=headers),
        client.post(f"{ROUTE}?key={SECRET}", content=b"{}", headers=headers),
        client.post(ROUTE, content=b"{}", headers=headers | {"content-type": SECRET}),
    ]
    for secret in (key, SECRET):
        answers += [
            client.post(f"/v1/{secret}", content=b"{}", headers=headers),
            client.post(f"{ROUTE}/{secret}", content=b"{}", headers=headers),
            client.request(secret, ROUTE, content=b"{}", headers=headers),
            client.post(
                ROUTE, content=b"{}", headers=headers | {"authorization": f"Bearer {secret}\xa0".encode("latin-1")}
            ),
            client.post(ROUTE, content=b"{}", headers=headers | {"user-agent": f"{secret}\xff".encode("latin-1")}),
            client.post(ROUTE, content=b"{}", headers=headers | {"x-request-id": secret, "host": secret}),
        ]
    return [answer.text for answer in answers]


def off_the_wire(port, key):
    """What gRPC calls are answered that say a secret where gRPC or HTTP does not allow it."""
    answers = []
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
            {":path": f"/{SERVICE}/{secret}"},
            {":method": secret},
            {":scheme": secret},
            {":authority": secret},
            {"host": secret},
        ):
            with Wire(port) as wire:
                stream = wire.begin(grpc_headers(port, key, changed))
                wire.send(stream, framed(secret.encode()), ends=True)
                told = str(wire.heard(stream))
            answers.append(told.replace(f"Illegal header key: X-{secret}", ""))  # gRPC itself, to its sender alone
    return answers
