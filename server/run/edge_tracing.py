"""The edge's part of a trace: Envoy's OpenTelemetry tracer, and who decides which calls it samples."""

from urllib.parse import urlsplit

from server.config import Settings

Config = dict[str, object]
SAMPLER = "type.googleapis.com/envoy.extensions.tracers.opentelemetry.samplers.v3.CELSamplerConfig"
CALLERS_TEXTS = ("http.method", "http.url", "user_agent", "grpc.path", "grpc.authority", "guid:x-client-trace-id")
"""Envoy's tags with texts of the caller. They are overwritten."""
EXPORT_SECONDS_MAX = "1s"
EXPORT = {"tracing.opentelemetry.flush_interval_ms": 1000, "tracing.opentelemetry.min_flush_spans": 500}
"""Values of Envoy's runtime. Otherwise Envoy keeps spans for up to 5 s, and sends them as soon as it has 5."""
SYSTEM_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def tracing(settings: Settings) -> Config:
    """The `tracing` of the HTTP connection manager. `otlp_cluster` must be among the clusters."""
    return {
        # What a caller sends may hold an API key, if it has mistaken the path for a place for one.
        "max_path_tag_length": 1,
        "custom_tags": [{"tag": tag, "literal": {"value": "-"}} for tag in CALLERS_TEXTS],
        "provider": {
            "name": "opentelemetry",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                "service_name": "ordernumbers-edge",
                "http_service": {
                    "http_uri": {
                        "uri": f"{settings.otlp_endpoint}/v1/traces",
                        "cluster": "otlp",
                        "timeout": EXPORT_SECONDS_MAX,
                    }
                },
                "sampler": {
                    "name": "cel",
                    "typed_config": {
                        "@type": SAMPLER,
                        "expression": {"cel_expr_parsed": {"expr": _is_sampled(settings.trace_ratio)}},
                    },
                },
            },
        },
    }


def forget_tracestate() -> Config:
    """An early header mutation: a span would have the caller's `tracestate`, which is any text."""
    return {
        "name": "forget_tracestate",
        "typed_config": {
            "@type": "type.googleapis.com/"
            "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": [{"remove": "tracestate"}],
        },
    }


def _is_sampled(ratio: float) -> Config:
    """`request.id < threshold` as a parsed CEL expression.

    The id is the UUID that Envoy has just made, so it is as good as a random number, and no caller can choose it. A
    trace's id and its flag come from the caller. So a stranger could have all its calls sampled.
    """
    # Hexadecimal digits, of which every text is less than "g".
    threshold = "g" if ratio == 1 else f"{int(ratio * 2**32):08x}"
    request_id = {"select_expr": {"operand": {"ident_expr": {"name": "request"}}, "field": "id"}}
    return {"call_expr": {"function": "_<_", "args": [request_id, {"const_expr": {"string_value": threshold}}]}}


def otlp_cluster(settings: Settings) -> Config:
    """The cluster of the receiver of traces."""
    url = urlsplit(str(settings.otlp_endpoint))
    assert url.hostname  # noqa: S101 - the settings have checked it
    port = url.port or (443 if url.scheme == "https" else 80)
    cluster: Config = {
        "name": "otlp",
        "type": "STRICT_DNS",
        "dns_lookup_family": "V4_PREFERRED",
        "connect_timeout": EXPORT_SECONDS_MAX,
        "load_assignment": {
            "cluster_name": "otlp",
            "endpoints": [
                {
                    "lb_endpoints": [
                        {"endpoint": {"address": {"socket_address": {"address": url.hostname, "port_value": port}}}}
                    ]
                }
            ],
        },
    }
    if url.scheme == "https":
        cluster["transport_socket"] = {
            "name": "tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": url.hostname,
                "auto_sni_san_validation": True,
                "common_tls_context": {
                    "validation_context": {"trusted_ca": {"filename": SYSTEM_CERTIFICATES}},
                },
            },
        }
    return cluster
