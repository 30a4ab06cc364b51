"""/docs and /openapi.json over plain HTTP: headers, compression, methods, and what is there when they are off."""

import gzip
import json
import re
import time

import httpx
import pytest

from server.run import docs_page
from server.run.banner import banner
from tests.support.callers import ROUTE, TIMEOUT_SECONDS, ULID, exactly, failure
from tests.support.edge import access_log, running_edge
from tests.support.rest import assert_clean, assert_refused
from tests.support.stack import local_settings, wait_until

pytestmark = pytest.mark.usefixtures("no_script_error")

PAGE, DOCUMENT = "/docs", "/openapi.json"


class Patient(httpx.HTTPTransport):
    """Waits and sends a request again when there were too many. The program may be read once a second."""

    def handle_request(self, request):
        while (response := super().handle_request(request)).status_code == 429:
            response.close()
            time.sleep(int(response.headers["retry-after"]))
        return response


@pytest.fixture(scope="module", params=["HTTP/1.1", "HTTP/2"])
def client(service, request):
    """A client of the edge, once per version of HTTP. It leaves bodies as they are, unlike `edge`."""
    http2 = request.param == "HTTP/2"
    transport = Patient(http1=not http2, http2=http2)
    with httpx.Client(base_url=service.rest_url, transport=transport, timeout=TIMEOUT_SECONDS) as client:
        yield client


@pytest.fixture(scope="module")
def program(service):
    """The path of the page's program. The page names it."""
    (path,) = re.findall(r'src="(/docs/[^"]+)"', httpx.get(f"{service.rest_url}{PAGE}").text)
    return path


@pytest.fixture(params=["page", "document", "program"])
def path(request, program):
    return {"page": PAGE, "document": DOCUMENT, "program": program}[request.param]


@pytest.fixture(params=["document", "program"])
def compressible(request, program):
    return {"document": DOCUMENT, "program": program}[request.param]


def test_each_is_served_without_a_key(client, path, program):
    media_types = {PAGE: "text/html; charset=utf-8", DOCUMENT: "application/json", program: "text/javascript"}
    response = client.get(path)
    assert (response.status_code, response.headers["content-type"]) == (200, media_types[path])
    assert response.headers["x-content-type-options"] == "nosniff"
    assert ULID.fullmatch(response.headers["x-request-id"])
    assert_clean(response.headers)


def test_a_key_changes_nothing(client, path):
    for key in ("Bearer am_live_unknown", "x"):
        assert client.get(path, headers={"authorization": key}).status_code == 200


def test_the_document_is_the_generated_one(client):
    assert client.get(DOCUMENT).json() == json.loads(docs_page.DOCUMENT.read_text())


def test_the_page_may_ask_this_edge_only(client):
    policy = dict(rule.split(" ", 1) for rule in client.get(PAGE).headers["content-security-policy"].split("; "))
    assert policy.pop("style-src") == "'unsafe-inline'"
    assert policy == {
        **dict.fromkeys(("default-src", "frame-ancestors", "base-uri", "form-action"), "'none'"),
        **dict.fromkeys(("script-src", "connect-src"), "'self'"),
        **dict.fromkeys(("img-src", "font-src"), "'self' data:"),
    }


def test_browsers_keep_the_program_and_nothing_else(client, program):
    assert client.get(program).headers["cache-control"] == "public, max-age=31536000, immutable"
    for path in (PAGE, DOCUMENT):
        assert client.get(path).headers["cache-control"] == "no-store"


def raw(client, path, accept_encoding):
    """The response, and its body as it came over the wire."""
    headers = {} if accept_encoding is None else {"accept-encoding": accept_encoding}
    request = httpx.Request("GET", client.base_url.join(path), headers=headers)
    response = client.send(request, stream=True)
    return response, b"".join(response.iter_raw())


@pytest.mark.parametrize(
    "accepted", ["gzip", "gzip, deflate, br", "br;q=1.0, GZIP;q=0.8", "deflate,gzip;q=0.5", "identity, gzip ; q=1.000"]
)
def test_the_body_is_compressed_for_those_who_accept_gzip(client, compressible, accepted):
    plain, body = raw(client, compressible, None)
    response, compressed = raw(client, compressible, accepted)
    assert (response.headers["content-encoding"], response.headers["vary"]) == ("gzip", "accept-encoding")
    assert response.headers["content-length"] == str(len(compressed))
    assert response.headers["content-type"] == plain.headers["content-type"]
    assert gzip.decompress(compressed) == body
    assert len(compressed) < len(body) / 3


@pytest.mark.parametrize("accepted", [None, "", "identity", "br", "gzip;q=0", "gzip; q=0.000, br", "x-gzip, gzipped"])
def test_the_body_is_not_compressed_for_others(client, compressible, accepted):
    response, body = raw(client, compressible, accepted)
    assert "content-encoding" not in response.headers
    assert (response.headers["vary"], response.headers["content-length"]) == ("accept-encoding", str(len(body)))


def test_head_has_the_headers_of_get_and_no_body(client, path):
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    different = {"date", "x-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in different} == {
        k: v for k, v in got.headers.items() if k not in different
    }


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_another_method_is_405(client, path, method):
    response = client.request(method, path)
    assert_refused(response, 405)
    assert response.headers["allow"] == "GET, HEAD"


def test_a_query_is_400(client, path):
    assert_refused(client.get(f"{path}?x=1"), 400, {"x": "unknown parameter"})
    assert client.get(f"{path}?").status_code == 200


def test_a_body_is_400(client, path):
    assert_refused(client.request("GET", path, content=b"{}"), 400)


@pytest.mark.parametrize("path", ["/docs/", "/docs/x", "/docsx", "/DOCS", "/openapi.json/", "/openapi.jsonx"])
def test_a_path_beside_them_is_unknown(client, path):
    assert_refused(client.request("GET", "/", extensions=exactly(path)), 404)


# ---------------------------------------------------------------- a rate limit of their own


def test_more_than_their_own_rate_limit_is_429(tmp_path, monkeypatch):
    monkeypatch.setattr(docs_page, "RESPONSES_PER_SECOND_MAX", 1)
    settings = local_settings(tmp_path, workers=1)
    with running_edge(settings), httpx.Client(base_url=f"http://127.0.0.1:{settings.rest_port}") as client:
        responses = []
        wait_until(lambda: responses.append(client.get(PAGE)) or responses[-1].status_code == 429)
        assert {response.status_code for response in responses[:-1]} == {200}
        (refused,) = responses[-1:]
        request_id = refused.headers["x-request-id"]
        assert refused.json() == failure("RATE_LIMITED", "rate limited", request_id)
        assert (refused.headers["cache-control"], refused.headers["retry-after"]) == ("no-store", "1")
        # Other calls are not counted with them. No server is there, so an order is 503.
        assert {client.post(ROUTE, json={"numbers": []}).status_code for _ in range(10)} == {503}
        lines = access_log(settings, len(responses) + 10)[: len(responses)]
    assert {line["path"] for line in lines} == {PAGE}


# ---------------------------------------------------------------- switched off


def statuses(settings, *paths):
    """What an edge with these settings responds to GET and POST of each path. No server is behind it."""
    with running_edge(settings), httpx.Client(base_url=f"http://127.0.0.1:{settings.rest_port}") as client:
        return [_status(client.request(method, path)) for path in paths for method in ("GET", "POST")]


def _status(response):
    if response.status_code == 404:
        assert_refused(response, 404)
    return response.status_code


def test_switched_off_they_are_as_unknown_as_any_path(tmp_path, program):
    settings = local_settings(tmp_path, workers=1, edge_docs=False)
    assert set(statuses(settings, PAGE, DOCUMENT, program, "/unknown")) == {404}
    assert list(tmp_path.rglob("*.gz")) == []
    assert PAGE not in banner(settings, "", 0)


@pytest.mark.parametrize("name", ["PACKAGE", "PROGRAM"])
def test_without_the_package_or_its_file_there_is_the_document_and_a_warning(
    tmp_path, program, monkeypatch, caplog, name
):
    monkeypatch.setattr(docs_page, name, "not_installed")
    settings = local_settings(tmp_path, workers=1)
    assert statuses(settings, DOCUMENT, PAGE, program) == [200, 405, 404, 404, 404, 404]
    (message,) = caplog.messages
    assert "pip install --no-deps flask-openapi-scalar" in message
    assert PAGE not in banner(settings, "", 0)
