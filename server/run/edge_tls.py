"""The edge's TLS, towards its clients and towards the servers.

Envoy watches the folders of the certificates. When a file is renamed into such a folder, it uses the new certificate
for new connections. That needs one file per secret, in the form of Envoy's secret discovery service (SDS).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server.certificates import check_certificate
from server.config import Settings

Config = dict[str, Any]
_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
CUSTOMERS, SERVERS, SERVERS_CA = "customers", "servers", "servers_ca"


def downstream_tls(settings: Settings) -> Config:
    """TLS towards clients, with the settings' `tls_cert`."""
    context = {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_certificate_sds_secret_configs": [_secret(settings, CUSTOMERS)],
    }
    return _transport_socket("DownstreamTlsContext", {"common_tls_context": context})


def upstream_tls(settings: Settings) -> Config:
    """TLS towards the servers: both sides show a certificate."""
    context = {
        "alpn_protocols": ["h2"],
        "tls_certificate_sds_secret_configs": [_secret(settings, SERVERS)],
        "validation_context_sds_secret_config": _secret(settings, SERVERS_CA),
    }
    return _transport_socket("UpstreamTlsContext", {"sni": settings.grpc_tls_name, "common_tls_context": context})


def write_secrets(settings: Settings) -> None:
    """Write the files that `downstream_tls` and `upstream_tls` refer to. They have names of files, and no key.

    Raises OperatorError if a certificate cannot be used. Envoy would start, and reset every connection.
    """
    if settings.tls_cert and settings.tls_key:
        check_certificate(settings.tls_cert, settings.tls_key)
    if settings.grpc_tls_cert and settings.grpc_tls_key:
        check_certificate(settings.grpc_tls_cert, settings.grpc_tls_key, settings.grpc_tls_ca)
    for name, secret in _secrets(settings):
        resource = {"@type": f"{_TLS}.Secret", "name": name, **secret}
        _path(settings, name).write_text(json.dumps({"resources": [resource]}, indent=1))


def _secrets(settings: Settings) -> Iterator[tuple[str, Config]]:
    if settings.tls_cert and settings.tls_key:
        yield CUSTOMERS, {"tls_certificate": _certificate(settings.tls_cert, settings.tls_key)}
    if settings.grpc_tls_cert and settings.grpc_tls_key and settings.grpc_tls_ca:
        yield SERVERS, {"tls_certificate": _certificate(settings.grpc_tls_cert, settings.grpc_tls_key)}
        name = {"san_type": "DNS", "matcher": {"exact": settings.grpc_tls_name}}
        ca = {"trusted_ca": _file(settings.grpc_tls_ca), "match_typed_subject_alt_names": [name]}
        yield SERVERS_CA, {"validation_context": ca | _watched(settings.grpc_tls_ca)}


def _certificate(chain: Path, key: Path) -> Config:
    return {"certificate_chain": _file(chain), "private_key": _file(key)} | _watched(chain)


def _file(path: Path) -> Config:
    return {"filename": str(path)}


def _watched(path: Path) -> Config:
    return {"watched_directory": {"path": str(path.parent)}}


def _secret(settings: Settings, name: str) -> Config:
    return {"name": name, "sds_config": {"path_config_source": {"path": str(_path(settings, name))}}}


def _path(settings: Settings, name: str) -> Path:
    return settings.data_dir / f"envoy-{settings.rest_port}-{name}.json"


def _transport_socket(context: str, config: Config) -> Config:
    return {"name": "tls", "typed_config": {"@type": f"{_TLS}.{context}", **config}}
