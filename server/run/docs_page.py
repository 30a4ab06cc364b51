"""What Envoy itself serves for readers: the reference page at /docs, and its OpenAPI document at /openapi.json.

The page is Scalar. An installed package carries its program. We serve that file and run no code of the package.
"""

import gzip
import logging
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from ordernumbers.v1 import errors_pb2
from server.config import Settings

log = logging.getLogger(__name__)

PAGE_PATH = "/docs"
DOCUMENT_PATH = "/openapi.json"
BODY_BYTES_MAX = 16 * 2**20
"""The longest body that Envoy may serve by itself."""
BYTES_PER_SECOND = 2 * 2**20
"""How much one route may serve, for all clients together. At least one response. It refuses more with RATE_LIMITED.

Envoy keeps a body in memory until its client has read it, for up to about a minute. Four routes have long bodies. With
all of them it stays below the default `edge_memory_mb_max`.
"""
RESPONSES_PER_SECOND_MAX = 50
RESPONSES_AT_ONCE = 10
"""Several people may open the page in the same second."""
PACKAGE = "flask_openapi_scalar"
"""The installed package with Scalar's program. requirements-docs.txt pins it."""
INSTALL = "pip install --no-deps flask-openapi-scalar"
PROGRAM = "templates/scalar/js/scalar.standalone.js"
DOCUMENT = Path(errors_pb2.__file__).with_name("openapi.json")

CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'unsafe-inline'",  # Scalar adds its styles to the page by script
        "connect-src 'self'",
        "img-src 'self' data:",
        "font-src 'self' data:",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)
"""The Content-Security-Policy of the page: it may only ask this edge, and nobody may put it into a frame."""

_ACCEPTS_GZIP = r"(?i)(.*,)?\s*gzip\s*(;\s*q=(1(\.0*)?|0\.\d*[1-9]\d*)\s*)?(,.*)?"
"""Values of accept-encoding that allow gzip: with no weight, or with one above 0 (RFC 9110, section 12.5.3)."""

Config = dict[str, Any]
_DISABLED: Config = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}


class _File(NamedTuple):
    path: str
    """Where the edge serves it."""
    media_type: str
    source: Path
    cache_control: str = "no-store"


def docs_routes(settings: Settings) -> list[Config]:
    """Return Envoy's routes for the page and its document. There are none if the settings switch them off.

    Without the package there is only the document. The routes name files that `write_docs_files` writes.
    """
    if not settings.edge_docs:
        return []
    program = _program()
    files = [file for file in (_document(), program) if file]
    routes = [route for file in files for route in _file_routes(file, settings)]
    return [_page_route(program), *routes] if program else routes


def write_docs_files(settings: Settings) -> None:
    """Write the compressed files of the routes into the data folder. Log a warning if the page's package is missing."""
    if not settings.edge_docs:
        return
    program = _program()
    if program is None:
        log.warning(f"{PAGE_PATH} is not served, because its program is missing: {INSTALL}")
    for file in (_document(), program):
        if file:
            path = _compressed(file, settings)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(file.source.read_bytes(), compresslevel=6, mtime=0))


def has_docs_page(settings: Settings) -> bool:
    """Whether the edge serves the page: the settings allow it, and its package is installed."""
    return settings.edge_docs and _program() is not None


def _document() -> _File:
    return _File(DOCUMENT_PATH, "application/json", DOCUMENT)


def _program() -> _File | None:
    """The page's program, or None if its package is not installed."""
    # This does not import the package, which would need a web framework.
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    source = Path(spec.origin).parent / PROGRAM
    if not source.is_file():  # another version of the package may have it elsewhere
        return None
    # A new version has a new path. So browsers may keep this one for ever.
    digest = sha256(source.read_bytes()).hexdigest()[:12]
    return _File(f"{PAGE_PATH}/scalar-{digest}.js", "text/javascript", source, "public, max-age=31536000, immutable")


def _compressed(file: _File, settings: Settings) -> Path:
    # The port is in the name, because several edges may share a data folder.
    return settings.data_dir / f"docs-{settings.rest_port}" / f"{file.source.name}.gz"


def _file_routes(file: _File, settings: Settings) -> list[Config]:
    accepts_gzip = {"name": "accept-encoding", "string_match": {"safe_regex": {"regex": _ACCEPTS_GZIP}}}
    headers = {"content-type": file.media_type, "cache-control": file.cache_control, "vary": "accept-encoding"}
    compressed = headers | {"content-encoding": "gzip"}
    size = file.source.stat().st_size
    return [
        # Compressed it has at most half of the size.
        _route(file.path, {"filename": str(_compressed(file, settings))}, compressed, size // 2, accepts_gzip),
        _route(file.path, {"filename": str(file.source)}, headers, size),
    ]


def _page_route(program: _File) -> Config:
    page = Template(Path(__file__).with_suffix(".html").read_text()).substitute(program=program.path)
    headers = {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": CSP,
        "referrer-policy": "no-referrer",
    }
    return _route(PAGE_PATH, {"inline_string": page}, headers, len(page))


def _route(path: str, body: Config, headers: dict[str, str], size: int, *conditions: Config) -> Config:
    return {
        "name": "docs",  # edge.lua knows the routes by it
        "match": {"path": path, "headers": [*conditions]},
        "direct_response": {"status": 200, "body": body},
        "typed_per_filter_config": {
            "rate_limit": _rate_limit(size),  # instead of those per client address and per key
            "transcoder": _DISABLED,  # it responds 404 to what is not a method
        },
        "response_headers_to_add": [
            {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for key, value in headers.items()
        ],
    }


def _rate_limit(size: int) -> Config:
    always = {"default_value": {"numerator": 100}}
    per_second = max(1, min(RESPONSES_PER_SECOND_MAX, BYTES_PER_SECOND // size))
    at_once = max(per_second, RESPONSES_AT_ONCE)
    bucket = {"max_tokens": at_once, "tokens_per_fill": per_second, "fill_interval": "1s"}
    return {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "docs",
        "token_bucket": bucket,
        "filter_enabled": always,
        "filter_enforced": always,
    }
