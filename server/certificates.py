"""Whether the files of a certificate can be used."""

import ssl
from pathlib import Path

from server.errors import OperatorError


def check_certificate(chain: Path, key: Path, ca: Path | None = None) -> None:
    """Raise OperatorError if these files are not a certificate, its key, and certificates of those who sign."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(chain, key)
    except OSError as error:
        raise OperatorError(f"{chain} and {key} cannot be used: {error.strerror or error}") from None
    try:
        if ca:
            context.load_verify_locations(ca)
    except OSError as error:
        raise OperatorError(f"{ca} cannot be used: {error.strerror or error}") from None
