"""TLS between edges and workers: both sides show a certificate, and a renewed one is used without a restart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from server.certificates import check_certificate
from server.config import Settings


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """New credentials for one gRPC server, or None if the settings have no certificate.

    Raises OperatorError if a file cannot be used.
    """
    if not (settings.grpc_tls_cert and settings.grpc_tls_key and settings.grpc_tls_ca):
        return None
    check_certificate(settings.grpc_tls_cert, settings.grpc_tls_key, settings.grpc_tls_ca)
    files = _Files([settings.grpc_tls_key, settings.grpc_tls_cert, settings.grpc_tls_ca])
    renewed: Any = files.renewed  # grpcio also takes None, which its types do not know
    return grpc.dynamic_ssl_server_credentials(files.configuration(), renewed, require_client_authentication=True)


class _Files:
    """The key, the certificate and the certificates of those who sign, as files that may be renewed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._read: list[bytes] = []

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """What the files hold now. Raises OSError."""
        self._read = [path.read_bytes() for path in self._paths]
        key, chain, ca = self._read
        return grpc.ssl_server_certificate_configuration([(key, chain)], ca)

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """The same, or None if they are unchanged or missing for a moment. gRPC asks before each new connection."""
        try:
            if [path.read_bytes() for path in self._paths] == self._read:
                return None
            return self.configuration()
        except OSError:
            return None
