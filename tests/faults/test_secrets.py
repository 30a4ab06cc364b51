"""A canary: no key and nothing else that a caller sends is ever in a log, a refusal's text or a trace."""

import grpc
import httpx
import pytest

from server.local.demo import KEY_FILE
from tests.callers import ROUTE, Grpc, Rest
from tests.faults.conftest import is_worker, kill
from tests.stack import Up, local_settings, wait_until

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
    return [answer.text for answer in answers]
