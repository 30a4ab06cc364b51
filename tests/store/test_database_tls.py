"""TLS to the database: its certificate and its host's name are checked, and the password may be in a file.

The embedded PostgreSQL is built without TLS. So a proxy that speaks PostgreSQL's TLS stands before it.
"""

import asyncio
import ssl
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme

from server.config import Settings
from server.run.embedded.postgres import EmbeddedPostgres
from server.store.connection import DatabaseAway, connect
from server.store.engine import admin_engine
from server.store.orders import STATEMENTS
from tests.support.batcher import outcome, run
from tests.support.clusters import cluster_of
from tests.support.customer import Customer
from tests.support.databases import Database, create_template, execute, new_database, open_folder
from tests.support.listener import Listener
from tests.support.orders import order_of

SSL_REQUEST = bytes.fromhex("0000000804d2162f")  # https://www.postgresql.org/docs/current/protocol-message-formats.html


class TlsProxy(Listener):
    """Relays connections that ask for TLS to a PostgreSQL's socket, and cuts all others."""

    def __init__(self, socket, certificate):
        super().__init__()
        self.encrypted, self.plain = 0, 0
        self._socket = socket
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self._context)

    async def serve(self, reader, writer):
        if await reader.readexactly(8) != SSL_REQUEST:
            self.plain += 1
            writer.close()
            return
        writer.write(b"S")
        try:
            await writer.start_tls(self._context)
        except (ssl.SSLError, OSError):  # the client did not like our certificate
            writer.transport.abort()
            return
        self.encrypted += 1
        upstream_reader, upstream_writer = await asyncio.open_unix_connection(self._socket)
        self.keep(upstream_writer)
        await asyncio.gather(_relay(reader, upstream_writer), _relay(upstream_reader, writer))


async def _relay(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


class TlsDatabase:
    """A database that can be reached with TLS, at the name `localhost`."""

    def __init__(self, url, proxy, ca):
        self.database = Database.at(url)
        self.proxy = proxy
        self.ca = ca
        self._name = urlsplit(url).path[1:]
        (self._user,) = parse_qs(urlsplit(url).query)["user"]

    def url(self, user=None, ca=None, host="localhost", **options):
        more = "".join(f"&{name}={value}" for name, value in options.items())
        tls = f"sslmode=verify-full&sslrootcert={ca or self.ca}"
        return f"postgresql://{user or self._user}@{host}:{self.proxy.port}/{self._name}?{tls}&hostaddr=127.0.0.1{more}"


@pytest.fixture(scope="module")
def tls():
    authority = trustme.CA()
    with open_folder() as folder:
        ca = folder / "ca.pem"
        ca.write_bytes(authority.cert_pem.bytes())
        with EmbeddedPostgres(folder / "data", fsync=False) as postgres:
            hba = cluster_of(folder / "data").resolve() / "pg_hba.conf"
            hba.write_text(f"local all with_password scram-sha-256\n{hba.read_text()}")
            execute(postgres, "CREATE ROLE with_password LOGIN SUPERUSER PASSWORD 'a b:c'")
            execute(postgres, "SELECT pg_reload_conf()")
            create_template(postgres)
            url = postgres.url(new_database(postgres))
            (folder_of_socket,) = parse_qs(urlsplit(url).query)["host"]
            socket = f"{folder_of_socket}/.s.PGSQL.5432"
            with TlsProxy(socket, authority.issue_cert("localhost")) as proxy:
                yield TlsDatabase(url, proxy, ca)


def test_all_connections_of_an_order_are_encrypted(tls):
    customer = Customer.open(tls.database.engine)

    async def work(batcher):
        return await outcome(batcher, order_of(customer, *customer.numbers(1)))

    before = tls.proxy.encrypted
    assert run(tls.url(), work) == "PLACED"
    with admin_engine(tls.url()).connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM orders").scalar() == 1
    assert tls.proxy.encrypted >= before + 2
    assert tls.proxy.plain == 0
    tls.database.check()


def reason(url):
    """Why no connection can be opened."""

    async def try_to_connect():
        with pytest.raises(DatabaseAway) as away:
            await connect(url, Settings(), STATEMENTS)
        return str(away.value)

    return asyncio.run(try_to_connect())


def test_a_certificate_of_another_authority_is_refused(tls, tmp_path):
    other = tmp_path / "other.pem"
    other.write_bytes(trustme.CA().cert_pem.bytes())
    assert "certificate verify failed" in reason(tls.url(ca=other))


def test_a_certificate_for_another_host_is_refused(tls):
    assert "does not match host name" in reason(tls.url(host="another.example"))


def test_the_password_may_be_in_a_file_that_only_its_user_can_read(tls, tmp_path):
    path = tmp_path / "pgpass"
    path.write_text("localhost:*:*:with_password:a b\\:c\n")
    path.chmod(0o600)
    url = tls.url("with_password", passfile=path)
    with admin_engine(url).connect() as connection:
        assert connection.exec_driver_sql("SELECT current_user").scalar() == "with_password"
    path.chmod(0o644)
    assert "no password supplied" in reason(url)
