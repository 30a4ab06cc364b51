"""The setting `servers`: which texts it takes, and what they mean."""

import pytest

from server.server_addresses import ServerAddress, read_servers


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("10.0.0.1:50051", [("10.0.0.1", 50051)]),
        ("10.0.0.1:50051-50053", [("10.0.0.1", 50051), ("10.0.0.1", 50052), ("10.0.0.1", 50053)]),
        ("10.0.0.1:1, 10.0.0.2:1", [("10.0.0.1", 1), ("10.0.0.2", 1)]),
        ("[fd00::1]:50051", [("fd00::1", 50051)]),
        ("dns:servers.example:50051", [("servers.example", 50051)]),
        ("server-1:50051,dns:others:50051-50052", [("server-1", 50051), ("others", 50051), ("others", 50052)]),
    ],
)
def test_entries_name_hosts_and_ports(text, addresses):
    assert read_servers(text) == [ServerAddress(*each) for each in addresses]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.1",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:5-4",
        "10.0.0.1:1-65",
        "10.0.0.1:1,",
        "10.0.0:1",
        "999.0.0.1:1",
        "fd00::1:50051",
        "[fd00::1",
        "[10.0.0.1.2]:1",
        "dns:10.0.0.1:1",
        "dns:[fd00::1]:1",
        "http://10.0.0.1:1",
        "a b:1",
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="is none of host:port, host:port-port and dns:name:port"):
        read_servers(text)


def test_no_port_is_named_twice():
    with pytest.raises(ValueError, match=r"names port 2 of 10\.0\.0\.1 again"):
        read_servers("10.0.0.1:1-3,10.0.0.1:2")


def test_names_are_told_from_addresses():
    assert [each.is_name for each in read_servers("10.0.0.1:1,[::1]:1,a:1")] == [False, False, True]
