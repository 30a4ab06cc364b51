"""What is true of every response of the edge over REST."""

import re

from server.errors import AT_THE_EDGE, ERRORS
from tests.support.callers import ULID, failure

JSON = {"content-type": "application/json"}
REFUSED = {ERRORS[code].http_status: (code, ERRORS[code].message) for code in AT_THE_EDGE}
INTERNAL_HEADER = re.compile(r"grpc-|x-envoy-|http-status")


def assert_clean(headers):
    """No header is there that only Envoy and the servers use."""
    assert [name for name in headers if INTERNAL_HEADER.match(name)] == []


def assert_not_cached_nor_guessed(response):
    """Caches must not store the response, and browsers must not guess its media type."""
    headers = response.headers
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")


def assert_refused(response, status, details=None):
    """The edge itself refused the request."""
    assert_clean(response.headers)
    assert_not_cached_nor_guessed(response)
    request_id = response.headers["x-request-id"]
    assert ULID.fullmatch(request_id)
    assert (response.status_code, response.json()) == (status, failure(*REFUSED[status], request_id, details=details))
    assert response.headers["content-type"] == "application/json"
    assert response.headers.get("retry-after") == ("1" if status == 503 else None)
