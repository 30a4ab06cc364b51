"""TLS between edges and workers: both sides show a certificate, and a renewed one is used without a restart."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import grpc

from server import metrics
from server.certificates import check_certificate, end_of
from server.config import Settings
from server.errors import OperatorError

log = logging.getLogger(__name__)


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """New credentials for one gRPC server, or None if the settings have no certificate.

    Raises OperatorError if a file cannot be used.
    """
    if not (settings.grpc_tls_cert and settings.grpc_tls_key and settings.grpc_tls_ca):
        return None
    files = _Files(settings.grpc_tls_cert, settings.grpc_tls_key, settings.grpc_tls_ca)
    renewed: Any = files.renewed  # grpcio also takes None, which its types do not know
    return grpc.dynamic_ssl_server_credentials(files.configuration(), renewed, require_client_authentication=True)


class _Files:
    """The certificate, its key and the certificates of those who sign, as files that may be renewed."""

    _problem: ClassVar[str] = ""
    """The last one that was logged. All servers of this process read the same files."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._in_use: Sequence[bytes] = []

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """What the files hold now. Raises OSError or OperatorError if they cannot be used."""
        found = self._read()
        check_certificate(*self._paths)
        if self._read() != found:
            raise OperatorError("the files of the certificate are being replaced")
        metrics.CERTIFICATE_END.value = end_of(*self._paths[:2])
        self._in_use = chain, key, ca = found
        return grpc.ssl_server_certificate_configuration([(key, chain)], ca)

    def _read(self) -> list[bytes]:
        return [path.read_bytes() for path in self._paths]

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """The same, or None to go on with those in use. gRPC asks before each new connection."""
        problem, renewed = "", None
        try:
            if self._read() != self._in_use:
                renewed = self.configuration()
        except (OSError, OperatorError) as error:
            problem = str(error)
        if problem not in ("", _Files._problem):
            # It is normal while the files are being replaced.
            log.warning("a renewed certificate cannot be used yet, so the one before stays in use: %s", problem)
        _Files._problem = problem
        return renewed
