"""The settings: read from the environment, and refused by name where they are wrong."""

import os
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from server.config import settings
from server.errors import OperatorError
from server.run.serve import environment_of, workers


@pytest.fixture
def told(monkeypatch):
    """The settings that an environment makes."""
    for name in os.environ:
        if name.startswith(("ORDERNUMBERS_", "DATABASE_URL")):
            monkeypatch.delenv(name)

    def read(**environment):
        with monkeypatch.context() as context:
            for name, value in environment.items():
                context.setenv(name if name in ("DATABASE_URL", "DATABASE_URL_FILE") else f"ORDERNUMBERS_{name}", value)
            settings.cache_clear()
            try:
                return settings()
            finally:
                settings.cache_clear()

    return read


@pytest.fixture
def refusal(told):
    def read(**environment):
        with pytest.raises(OperatorError) as refused:
            told(**environment)
        return str(refused.value)

    return read


def test_nothing_need_be_set(told):
    default = told()
    assert (str(default.bind), str(default.grpc_bind), default.rest_port) == ("127.0.0.1", "127.0.0.1", 8080)
    assert default.workers == os.cpu_count()
    assert default.data_dir == Path.cwd() / ".data"
    assert default.database_url is None


def test_the_url_of_the_database_may_be_in_a_file(told, refusal, tmp_path):
    url, path = "postgresql://someone:secret@one/numbers", tmp_path / "url"
    missing = refusal(DATABASE_URL_FILE=str(path))
    assert missing == f"DATABASE_URL_FILE: {path} cannot be read: No such file or directory"
    path.write_text(f"{url}\n")
    settings = told(DATABASE_URL_FILE=str(path))
    assert settings.database_url == url
    assert url not in environment_of(settings).values()
    assert environment_of(settings)["DATABASE_URL_FILE"] == str(path)
    assert refusal(DATABASE_URL_FILE=str(path), DATABASE_URL=url) == (
        "DATABASE_URL and DATABASE_URL_FILE must not both be set"
    )
    path.write_text("secret")
    assert refusal(DATABASE_URL_FILE=str(path)) == "DATABASE_URL: must be a postgresql:// URL"


def test_what_is_set_counts(told):
    url = "postgresql://someone@one,other/numbers"
    read = told(DATABASE_URL=url, BIND="::1", GRPC_PORT="6000", WORKERS="3", EDGE_REFLECTION="true", DATA_DIR="~/here")
    assert read.database_url == url
    assert read.bind == IPv6Address("::1")
    assert read.grpc_ports == [6000, 6001, 6002]
    assert read.edge_reflection is True
    assert read.data_dir == Path.home() / "here"


def test_what_is_set_to_nothing_is_not_set(told):
    assert told(DATABASE_URL="", REST_PORT="", TLS_CERT="") == told()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BIND", "localhost"),
        ("GRPC_BIND", "256.0.0.1"),
        ("REST_PORT", "0"),
        ("REST_PORT", "65536"),
        ("GRPC_PORT", "http"),
        ("WORKERS", "0"),
        ("WORKERS", "two"),
        ("ORDER_CONNECTIONS", "17"),
        ("BATCH_NUMBERS_MAX", "99"),
        ("ORDERS_IN_PROGRESS_MAX", "0"),
        ("RATE_LIMIT_PER_KEY", "0"),
        ("KEY_CACHE_MS", "2001"),
        ("DEADLINE_MAX_MS", "0"),
        ("DEADLINE_MAX_MS", "nan"),
        ("DRAIN_MS", "-1"),
        ("LOCK_TIMEOUT_MS", "0.5"),
        ("EDGE_REFLECTION", "maybe"),
        ("METRICS_BIND", "everywhere"),
        ("METRICS_PORT", "-1"),
        ("EDGE_METRICS_PORT", "65536"),
    ],
)
def test_a_wrong_value_is_refused_by_name(refusal, name, value):
    assert refusal(**{name: value}).startswith(f"ORDERNUMBERS_{name}: ")


def test_every_wrong_value_is_told_at_once(refusal):
    told = refusal(REST_PORT="http", WORKERS="0").split("; ")
    assert [each.split(":")[0] for each in told] == ["ORDERNUMBERS_REST_PORT", "ORDERNUMBERS_WORKERS"]


def test_another_database_is_refused_without_its_password(refusal):
    assert refusal(DATABASE_URL="mysql://someone:sekret@host/db") == "DATABASE_URL: must be a postgresql:// URL"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///numbers?host=/var/run/postgresql&user=me@realm",
        "postgresql://%2Fvar%2Frun%2Fpostgresql/numbers",
        "postgres://me@db.example.com:5432,db_2.example.com:5433/numbers?target_session_attrs=read-write",
        "postgresql://me:p%40ss%2Fword@[2001:db8::1]:5432,[fe80::1%25eth0]/numbers",
        "postgresql://me:a:b?c=d#e!$&'()*+,;[]@host",
        "postgresql://me@host/a%2Fb/c",
        "postgresql://",
    ],
)
def test_every_url_of_libpq_is_taken(told, url):
    assert told(DATABASE_URL=url).database_url == url
    assert url not in repr(told(DATABASE_URL=url))


# Written as they are, for libpq they end the password early: what is left would be a host, a port or a database.
BARE_PASSWORDS = [
    "sekret@sekret", "@sekret", "sekret@", "sekret@sekret/sekret", "sekret@sekret:sekret", "sekret@sekret:1",
    "1@1,sekret", "sekret@sekret,sekret", "sekret@[sekret", "sekret@[::1]sekret", "sekret@sekret?sekret",
    "1@1?options=sekret", "sekret@sekret#sekret", "sekret/sekret", "1234/sekret", "1234?/sekret", "sekret%",
    "sekret%zz", "sek ret", "sekret@ sekret", "sekret%00", "sekret\udcff", "sekret\n@sekret",
]  # fmt: skip


@pytest.mark.parametrize("password", BARE_PASSWORDS)
def test_a_url_that_libpq_would_misread_is_refused_without_its_password(refusal, password):
    assert refusal(DATABASE_URL=f"postgresql://someone:{password}@127.0.0.1:1/numbers") == (
        "DATABASE_URL: is not a URL that PostgreSQL understands. "
        "In user and password write @ as %40, / as %2F, % as %25"
    )


def test_an_unknown_variable_is_refused(refusal):
    assert refusal(REST_PROT="8081").startswith("ORDERNUMBERS_REST_PROT is not a setting. The settings are ")
    assert refusal(DATABASE_URL_="x").startswith("ORDERNUMBERS_DATABASE_URL_ is not a setting")


def test_a_certificate_needs_its_key(told, refusal, tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.touch()
    together = "ORDERNUMBERS_TLS_CERT and ORDERNUMBERS_TLS_KEY must be set together"
    assert refusal(TLS_CERT=str(certificate)) == refusal(TLS_KEY=str(key)) == together
    assert refusal(TLS_CERT=str(certificate), TLS_KEY=str(key)) == f"ORDERNUMBERS_TLS_KEY: {key} is not a file"
    key.touch()
    assert told(TLS_CERT=str(certificate), TLS_KEY=str(key)).tls_key == key


def test_the_certificates_between_edge_and_workers_belong_together(told, refusal, tmp_path):
    files = {f"GRPC_TLS_{name}": str(tmp_path / name) for name in ("CERT", "KEY", "CA")}
    together = " and ".join(f"ORDERNUMBERS_{name}" for name in files) + " must be set together"
    assert refusal(GRPC_TLS_CERT=files["GRPC_TLS_CERT"]) == together
    assert refusal(**files) == f"ORDERNUMBERS_GRPC_TLS_CERT: {tmp_path / 'CERT'} is not a file"
    for name in ("CERT", "KEY", "CA"):
        (tmp_path / name).touch()
    assert told(**files).grpc_tls_ca == tmp_path / "CA"


def test_the_edge_calls_the_workers_of_its_machine_unless_told_otherwise(told, refusal):
    assert told(WORKERS="2", GRPC_BIND="0.0.0.0").server_addresses == [("127.0.0.1", 50051), ("127.0.0.1", 50052)]
    assert told(SERVERS="10.0.0.1:7").server_addresses == [("10.0.0.1", 7)]
    assert refusal(SERVERS="10.0.0.1") == (
        "ORDERNUMBERS_SERVERS: '10.0.0.1' is none of host:port, host:port-port and dns:name:port"
    )


@pytest.mark.parametrize("addresses", ["10.0.0.1:7,10.0.0.2:7", "10.0.0.1:7-8", "10.0.0.1:7-7"])
def test_the_rate_limit_service_is_one_address(told, refusal, addresses):
    assert told(RATE_LIMIT_SERVICE="limits-of-all.example:8081").rate_limit_service
    assert refusal(RATE_LIMIT_SERVICE=addresses) == (
        "ORDERNUMBERS_RATE_LIMIT_SERVICE: must be one address, as host:port"
    )


@pytest.mark.parametrize("name", ["two words", "-a", "a..b", "*.example", "a" * 64])
def test_the_name_of_the_workers_is_a_dns_name(told, refusal, name):
    assert told(GRPC_TLS_NAME="ordernumbers.internal").grpc_tls_name
    assert refusal(GRPC_TLS_NAME=name) == "ORDERNUMBERS_GRPC_TLS_NAME: must be a DNS name"


def test_workers_that_other_machines_could_call_need_tls(told):
    for exposed in (told(GRPC_BIND="0.0.0.0"), told(GRPC_BIND="::")):
        with pytest.raises(OperatorError, match=r"is open to other machines\. Set ORDERNUMBERS_GRPC_TLS_CERT, "):
            workers(exposed, "postgresql://")
    assert workers(told(GRPC_BIND="0.0.0.0", GRPC_INSECURE="true"), "postgresql://")
    assert workers(told(GRPC_BIND="127.0.0.9"), "postgresql://")


@pytest.mark.parametrize("url", ["127.0.0.1:4318", "http://h:0", "http://h:99999", "http://h/v1/traces", "ftp://h"])
def test_the_receiver_of_traces_is_a_url_without_a_path(refusal, url):
    assert refusal(OTLP_ENDPOINT=url) == (
        "ORDERNUMBERS_OTLP_ENDPOINT: must be a URL such as http://127.0.0.1:4318, without a path"
    )


def test_no_two_ports_are_the_same(refusal):
    rest, grpc = "ORDERNUMBERS_REST_PORT has", "ORDERNUMBERS_GRPC_PORT has"
    metrics, of_edge = "ORDERNUMBERS_METRICS_PORT has", "ORDERNUMBERS_EDGE_METRICS_PORT has"
    for told, wrong in (
        ({"WORKERS": "2", "GRPC_PORT": "8079"}, f"{rest} 8080 and {grpc} 8079, 8080"),
        ({"WORKERS": "1", "REST_PORT": "50051"}, f"{rest} 50051 and {grpc} 50051"),
        ({"WORKERS": "1", "METRICS_PORT": "50051"}, f"{grpc} 50051 and {metrics} 50051"),
        ({"EDGE_METRICS_PORT": "8080"}, f"{rest} 8080 and {of_edge} 8080"),
        ({"WORKERS": "2", "METRICS_PORT": "65535"}, f"{metrics} 65535, 65536"),
        ({"WORKERS": "2", "GRPC_PORT": "65535"}, f"{grpc} 65535, 65536"),
    ):
        assert refusal(**told) == f"the ports must differ and be at most 65535, but {wrong}"


def test_metrics_may_be_off(told):
    off = told(METRICS_PORT="0", EDGE_METRICS_PORT="0", WORKERS="2")
    assert (off.metrics_ports, off.edge_metrics_port) == ([], 0)
    assert told(METRICS_PORT="9000", WORKERS="2").metrics_ports == [9000, 9001]
