"""Envoy's configuration for the settings.

The behaviour of the edge is written in envoy/. Envoy expands no variables, so addresses, limits, file names and TLS are
set here.
"""

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import yaml

from ordernumbers.v1 import errors_pb2
from server.config import REQUEST_BODY_BYTES_MAX, Settings
from server.run.docs_page import BODY_BYTES_MAX, docs_routes
from server.run.edge_rate_limit import add_shared_rate_limit
from server.run.edge_tls import downstream_tls, upstream_tls
from server.run.edge_tracing import EXPORT, forget_tracestate, otlp_cluster, tracing
from server.run.envoy_admin import SOCKET_MODE, admin_socket

CONTRACT = Path(errors_pb2.__file__).parent
"""The folder of the generated files: the descriptors of the protos, and the table of errors in Lua."""
_SERVER = Path(__file__).parent.parent
EDGE = next(folder for folder in (_SERVER / "envoy", _SERVER.parent / "envoy") if folder.is_dir())
"""The folder of envoy.yaml and its Lua: inside the package in a wheel, beside it in a checkout."""
HSTS = {
    "append": {
        "header": {"key": "strict-transport-security", "value": "max-age=31536000"},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }
}
"""Browsers that reached us over TLS must use TLS for a year (RFC 6797)."""

Config = dict[str, Any]


def edge_config(settings: Settings) -> Config:
    """Return envoy/envoy.yaml with the addresses, limits, files and certificate of the settings, and a metrics page."""
    config: Config = yaml.safe_load((EDGE / "envoy.yaml").read_text())
    (listener,) = config["static_resources"]["listeners"]
    (cluster,) = config["static_resources"]["clusters"]
    config["admin"] = _admin_page(settings)
    _set_overload(config["overload_manager"], settings)
    listener["address"] = _address(settings.bind, settings.rest_port)
    listener["per_connection_buffer_limit_bytes"] = REQUEST_BODY_BYTES_MAX
    _set_servers(cluster, settings)
    (chain,) = listener["filter_chains"]
    if settings.tls_cert:
        chain["transport_socket"] = downstream_tls(settings)
    http = chain["filters"][0]["typed_config"]
    _set_http(http, settings)
    if settings.otlp_endpoint:
        http["tracing"] = tracing(settings)
        http["early_header_mutation_extensions"] = [forget_tracestate()]
        config["static_resources"]["clusters"].append(otlp_cluster(settings))
        config["layered_runtime"]["layers"][0]["static_layer"] |= EXPORT
    if settings.rate_limit_service:
        add_shared_rate_limit(config, http, settings)
    if settings.edge_metrics_port:
        _add_metrics_page(config["static_resources"], settings)
    return config


def longest_call_ms(settings: Settings) -> int:
    """Return the longest time that any call through the edge may take."""
    return max(settings.deadline_max_ms, settings.rest_deadline_ms)


def _admin_page(settings: Settings) -> Config:
    pipe = {"path": str(admin_socket(settings)), "mode": SOCKET_MODE}
    # The connection limit does not count admin connections: we must reach the page when the limit is reached.
    return {"address": {"pipe": pipe}, "ignore_global_conn_limit": True}


def _add_metrics_page(resources: Config, settings: Settings) -> None:
    page: Config = yaml.safe_load((EDGE / "metrics.yaml").read_text())
    page["listener"]["address"] = _address(settings.metrics_bind, settings.edge_metrics_port)
    pipe = {"path": str(admin_socket(settings))}
    page["cluster"]["load_assignment"]["endpoints"] = [{"lb_endpoints": [{"endpoint": {"address": {"pipe": pipe}}}]}]
    resources["listeners"].append(page["listener"])
    resources["clusters"].append(page["cluster"])


def _set_overload(overload: Config, settings: Settings) -> None:
    connections, memory = (monitor["typed_config"] for monitor in overload["resource_monitors"])
    connections["max_active_downstream_connections"] = settings.edge_connections_max
    memory["max_heap_size_bytes"] = settings.edge_memory_mb_max * 2**20


def _address(host: IPv4Address | IPv6Address, port: int) -> Config:
    return {"socket_address": {"address": str(host), "port_value": port}}


def _set_servers(cluster: Config, settings: Settings) -> None:
    addresses = settings.server_addresses
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": each.host, "port_value": each.port}}}}
        for each in addresses
    ]
    cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]
    if any(each.is_name for each in addresses):
        cluster["type"] = "STRICT_DNS"
    if settings.grpc_tls_cert:
        cluster["transport_socket"] = upstream_tls(settings)


def _set_http(http: Config, settings: Settings) -> None:
    filters = {each["name"]: each["typed_config"] for each in http["http_filters"]}
    if settings.tls_cert:
        filters["every_response"]["mutations"]["response_mutations"].append(HSTS)
    for name in ("key", "edge"):
        filters[name]["default_source_code"]["filename"] = str(EDGE / f"{name}.lua")
    filters["edge"]["package_paths"] = [str(folder / "?.lua") for folder in (EDGE, CONTRACT)]
    filters["transcoder"]["proto_descriptor"] = str(CONTRACT / "descriptors.binpb")
    _set_rate_limit(filters["rate_limit"], settings)
    # A stream is silent while its call is carried out. Only longer silence may close it.
    http["stream_idle_timeout"] = _duration(longest_call_ms(settings) + 30_000)
    (host,) = http["route_config"]["virtual_hosts"]
    _set_routes(host["routes"], settings)
    if docs := docs_routes(settings):
        host["routes"] += docs
        http["route_config"]["max_direct_response_body_size_bytes"] = BODY_BYTES_MAX


def _set_rate_limit(limit: Config, settings: Settings) -> None:
    per_address, *per_key = limit["descriptors"]
    per_address["token_bucket"] |= dict.fromkeys(("max_tokens", "tokens_per_fill"), settings.rate_limit_per_address)
    for each in (limit, *per_key):
        each["token_bucket"] |= dict.fromkeys(("max_tokens", "tokens_per_fill"), settings.rate_limit_per_key)


def _set_routes(routes: list[Config], settings: Settings) -> None:
    by_name = {route["name"]: route for route in routes}
    # The servers end a call at its deadline, with our error. Envoy ends it a little later, in case a server hangs.
    longest = _duration(settings.deadline_max_ms + 500)
    grpc = by_name["grpc"]["route"] | {
        "max_stream_duration": {"max_stream_duration": longest, "grpc_timeout_header_max": longest}
    }
    by_name["grpc"]["route"] = by_name["health"]["route"] = grpc
    if settings.edge_reflection:
        routes.append({"name": "reflection", "match": {"prefix": "/grpc.reflection.", "grpc": {}}, "route": grpc})
    # The routes for REST share these values, by anchors in envoy.yaml.
    by_name["rest"]["route"]["timeout"] = _duration(settings.rest_deadline_ms)
    (deadline,) = by_name["rest"]["request_headers_to_add"]
    # The server's deadline is earlier than Envoy's timeout, so that its own error reaches the caller.
    deadline["header"]["value"] = f"{settings.rest_deadline_ms * 9 // 10}m"


def _duration(ms: int) -> str:
    """Return a protobuf Duration in JSON."""
    return f"{ms / 1000:g}s"
