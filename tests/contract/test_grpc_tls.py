"""TLS between edges and workers: both show a certificate, and a renewed one is used without a restart."""

import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path

import grpc
import httpx
import pytest
import trustme

from ordernumbers.v1.orders_pb2 import OrderNumbersRequest
from tests.support.callers import METHOD, ROUTE
from tests.support.databases import open_folder
from tests.support.metrics import Metrics
from tests.support.stack import Up, local_settings, wait_until

NAME = "ordernumbers-servers"


class Certificates:
    """The files of one host, in a folder of their own."""

    def __init__(self, folder: Path, authority: trustme.CA, name: str = NAME) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.settings = {f"grpc_tls_{each}": folder / f"{each}.pem" for each in ("cert", "key", "ca")}
        self.renew(authority, authority, name=name)

    def renew(self, authority: trustme.CA, *trusted: trustme.CA, name: str = NAME) -> None:
        """A new certificate from this authority. The other side's may come from any of those that are trusted."""
        issued = authority.issue_cert(name)
        self._replace("key", issued.private_key_pem.bytes())
        self._replace("cert", issued.cert_chain_pems[0].bytes())
        self._replace("ca", b"".join(each.cert_pem.bytes() for each in trusted))

    def _replace(self, name: str, content: bytes) -> None:
        path = self.folder / f"{name}.new"
        path.write_bytes(content)
        path.rename(self.folder / f"{name}.pem")


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def up(authority):
    """A service whose edge and worker share the files of one host."""
    with open_folder() as folder:
        certificates = Certificates(folder / "tls", authority)
        settings = local_settings(folder / ".data", workers=1, **certificates.settings)
        with Up(settings, folder) as up:
            yield up.until_ready()


def key(up):
    return (up.settings.data_dir / "demo.key").read_text().strip()


def order_at_the_edge(up, number="+19995550100"):
    headers = {"authorization": f"Bearer {key(up)}"}
    return httpx.post(f"{up.rest_url}{ROUTE}", json={"numbers": [number]}, headers=headers).status_code


def order_at_the_worker(up, credentials):
    """The status of an order of a number that nobody has: ABORTED if the worker takes the call."""
    target = f"127.0.0.1:{up.settings.grpc_port}"
    options = [("grpc.ssl_target_name_override", NAME)] if credentials else []
    channel = grpc.secure_channel(target, credentials, options) if credentials else grpc.insecure_channel(target)
    with channel:
        call = channel.unary_unary(METHOD, OrderNumbersRequest.SerializeToString, None)
        request = OrderNumbersRequest(numbers=["+19995550100"])
        with pytest.raises(grpc.RpcError) as refused:
            call(request, metadata=[("authorization", f"Bearer {key(up)}")], timeout=5)
    return refused.value.code()


def client_credentials(authority, trusted):
    issued = authority.issue_cert("client")
    return grpc.ssl_channel_credentials(
        trusted.cert_pem.bytes(), issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes()
    )


def test_an_order_goes_through_the_edge(up):
    assert order_at_the_edge(up) == 409


def test_an_internal_caller_with_a_certificate_is_served(up, authority):
    assert order_at_the_worker(up, client_credentials(authority, authority)) == grpc.StatusCode.ABORTED


def test_the_worker_shows_when_its_certificate_ends(up, authority):
    end = ssl.cert_time_to_seconds(certificate_of_the_worker(up, authority)["notAfter"])
    shown = Metrics(up.settings.metrics_ports).total("ordernumbers_certificate_end_timestamp_seconds")
    assert shown == end


def test_others_are_not_served(up, authority):
    strangers = trustme.CA()
    without = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    for credentials in (None, without, client_credentials(strangers, authority)):
        assert order_at_the_worker(up, credentials) == grpc.StatusCode.UNAVAILABLE


def test_the_edge_calls_no_server_whose_certificate_has_another_name_or_authority(up, authority, tmp_path):
    servers = f"127.0.0.1:{up.settings.grpc_port}"
    for name, other in (("another-name", {"grpc_tls_name": "another-name"}), (NAME, {})):
        own = Certificates(tmp_path / name, authority if other else trustme.CA(), name)
        settings = local_settings(tmp_path / name / ".data", workers=1, servers=servers, **own.settings, **other)
        with Up(settings, tmp_path / name, command="edge") as edge:
            wait_until(lambda: status_of(edge) is not None)
            assert status_of(edge) == 503


def status_of(edge):
    with suppress(httpx.HTTPError):
        return httpx.get(f"{edge.rest_url}/healthz").status_code
    return None


def serial_of_the_worker(up, authority):
    return certificate_of_the_worker(up, authority)["serialNumber"]


def certificate_of_the_worker(up, authority):
    """The certificate that the worker shows now, as Python's ssl has it."""
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    context.check_hostname = False
    own = authority.issue_cert("client")
    own.configure_cert(context)
    with (
        socket.create_connection(("127.0.0.1", up.settings.grpc_port)) as plain,
        context.wrap_socket(plain, server_hostname=NAME) as wrapped,
    ):
        return wrapped.getpeercert()


def test_a_certificate_that_cannot_be_used_is_logged_once_and_the_one_before_stays_in_use(up, authority):
    chain = up.settings.grpc_tls_cert
    good, before = chain.read_bytes(), serial_of_the_worker(up, authority)
    chain.write_bytes(b"half a cert")
    for _ in range(3):
        assert serial_of_the_worker(up, authority) == before
    assert up.logs.count("a renewed certificate cannot be used yet") == 1
    chain.write_bytes(good)
    assert serial_of_the_worker(up, authority) == before
    assert order_at_the_edge(up) == 409


def test_renewed_certificates_are_used_without_a_restart_and_no_call_fails(up, authority):
    certificates = Certificates.__new__(Certificates)
    certificates.folder = up.settings.grpc_tls_cert.parent
    statuses, stop = [], threading.Event()

    def order_again_and_again():
        while not stop.is_set():
            statuses.append(order_at_the_edge(up))

    before, newer = serial_of_the_worker(up, authority), trustme.CA()
    thread = threading.Thread(target=order_again_and_again)
    thread.start()
    try:
        certificates.renew(authority, authority, newer)  # both sides trust both
        wait_until(lambda: serial_of_the_worker(up, authority) != before)
        certificates.renew(newer, authority, newer)  # both sides show the newer one
        wait_until(lambda: _is_shown(up, newer))
        certificates.renew(newer, newer)
        count = len(statuses)
        wait_until(lambda: len(statuses) >= count + 50)
    finally:
        stop.set()
        thread.join()
    assert set(statuses) == {409}
    # A new connection of the edge, with the newer certificates only.
    settings = local_settings(
        up.folder / "edge2",
        workers=1,
        servers=f"127.0.0.1:{up.settings.grpc_port}",
        **{name: getattr(up.settings, name) for name in ("grpc_tls_cert", "grpc_tls_key", "grpc_tls_ca")},
    )
    with Up(settings, up.folder / "edge2", command="edge") as edge:
        wait_until(lambda: status_of(edge) == 200)


def _is_shown(up, authority):
    with suppress(ssl.SSLError, OSError):
        return bool(serial_of_the_worker(up, authority))
    return False
