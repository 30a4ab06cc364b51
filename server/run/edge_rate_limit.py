"""Rate limits that several edges share, by a service that speaks the protocol of envoyproxy/ratelimit.

It is asked about each client address and each organization. It never gets an API key: the organization's tag is the
part of a key that is no secret.
"""

from typing import Any

from server.config import Settings
from server.server_addresses import read_servers

Config = dict[str, Any]
NAME = "shared_rate_limit"
DOMAIN = "ordernumbers"
TIMEOUT = "0.05s"
"""How long a call waits for the service. After that it goes on: each edge still has its own limits."""
_METADATA = "ordernumbers.rate_limit"
_FILTERS = "type.googleapis.com/envoy.extensions.filters.http"


def add_shared_rate_limit(config: Config, http: Config, settings: Settings) -> None:
    """Let the edge ask the service of the settings. `http` is its HTTP connection manager in `config`."""
    filters = http["http_filters"]
    before = next(at for at, each in enumerate(filters) if each["name"] == "edge")  # before any body is read
    filters[before:before] = _filters()
    (host,) = http["route_config"]["virtual_hosts"]
    host["rate_limits"] = _limits()
    for route in host["routes"]:
        if route["name"] == "healthz":
            disabled = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
            route["typed_per_filter_config"][NAME] = disabled
    config["static_resources"]["clusters"].append(_cluster(settings))


def _filters() -> list[Config]:
    # It must match every value: Envoy would send one that it does not match as it is, with the key.
    tag = {"pattern": {"regex": "(?i:bearer) +am_live_([0-9A-Za-z]{6})[!-~]{38}|.*"}, "substitution": "\\1"}
    organization = {"metadata_namespace": _METADATA, "key": "organization", "regex_value_rewrite": tag}
    return [
        {
            "name": "organization",
            "typed_config": {
                "@type": f"{_FILTERS}.header_to_metadata.v3.Config",
                "request_rules": [{"header": "authorization", "on_header_present": organization}],
            },
        },
        {
            "name": NAME,
            "typed_config": {
                "@type": f"{_FILTERS}.ratelimit.v3.RateLimit",
                "domain": DOMAIN,
                "timeout": TIMEOUT,
                "failure_mode_deny": False,
                "rate_limited_as_resource_exhausted": True,  # else native gRPC gets UNAVAILABLE
                "rate_limit_service": {
                    "transport_api_version": "V3",
                    "grpc_service": {"envoy_grpc": {"cluster_name": NAME}, "timeout": TIMEOUT},
                },
            },
        },
    ]


def _limits() -> list[Config]:
    path = [{"key": "organization"}]
    organization = {
        "descriptor_key": "organization",
        "metadata_key": {"key": _METADATA, "path": path},
        "source": "DYNAMIC",
        "skip_if_absent": True,
    }
    return [
        {"actions": [{"masked_remote_address": {"v4_prefix_mask_len": 32, "v6_prefix_mask_len": 64}}]},
        {"actions": [{"metadata": organization}]},
    ]


def _cluster(settings: Settings) -> Config:
    (address,) = read_servers(str(settings.rate_limit_service))
    endpoint = {"address": {"socket_address": {"address": address.host, "port_value": address.port}}}
    http2: Config = {"explicit_http_config": {"http2_protocol_options": {}}}
    return {
        "name": NAME,
        "type": "STRICT_DNS" if address.is_name else "STATIC",
        "dns_lookup_family": "V4_PREFERRED",
        "connect_timeout": TIMEOUT,
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                **http2,
            }
        },
        "load_assignment": {"cluster_name": NAME, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]},
    }
