"""Whether the files of a certificate can be used, and for how long."""

import ssl
from contextlib import suppress
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


def end_of(chain: Path, key: Path) -> float:
    """When the certificate ends, in seconds since 1970. It is 1 if that is past."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(chain, key)
    client.check_hostname = False
    client.load_verify_locations(chain)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # Python shows what is in a certificate only to a client that trusts it. So we are both sides of a connection.
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)
    try:
        for side in sides * 2:
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError:
        return 1
    certificate = sides[0].getpeercert()
    assert certificate  # noqa: S101 - the client has verified it
    return ssl.cert_time_to_seconds(str(certificate["notAfter"]))
