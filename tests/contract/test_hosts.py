"""Servers on several hosts: how the edge finds them, and which of them it sends an organization's calls to."""

import socketserver
import struct
import threading
from collections import Counter
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from tests.support.callers import ROUTE
from tests.support.edge import running_edge, running_server, sell, stat
from tests.support.stack import free_ports, local_settings, wait_until

HOSTS = [f"127.0.0.{i}" for i in range(1, 6)]  # Linux has them all on the loopback interface
TAGS = 200


class Hosts:
    """Servers on several hosts, all with the same port, and the calls that each of them got."""

    def __init__(self, stack):
        self.port = free_ports(1)
        self.calls = Counter()
        self._stack = stack
        self._running = {}

    def start(self, *hosts):
        for host in hosts:
            self._running[host] = self._stack.enter_context(ExitStack())
            self._running[host].enter_context(running_server(self.port, self._recording(host), host))

    def stop(self, host):
        self._running.pop(host).close()

    def setting(self, *hosts):
        return ",".join(f"{host}:{self.port}" for host in hosts)

    def _recording(self, host):
        def record_and_sell(request, context):
            self.calls[host] += 1
            return sell(request, context)

        return record_and_sell


@pytest.fixture
def hosts():
    with ExitStack() as stack:
        yield Hosts(stack)


@contextmanager
def edge(folder, change=lambda _: None, **settings):
    own = local_settings(folder, **settings)
    with running_edge(own, change):
        yield own


def healthy(own, count):
    wait_until(lambda: stat(own, "cluster.servers.membership_healthy") == count)


def host_by_tag(own, hosts, tags=TAGS):
    """The host that serves each organization's tag."""
    found = {}
    with httpx.Client(base_url=f"http://127.0.0.1:{own.rest_port}") as client:
        for tag in range(tags):
            hosts.calls.clear()
            key = f"Bearer am_live_{tag:06}{0:038}"
            response = client.post(ROUTE, json={"numbers": []}, headers={"authorization": key})
            assert response.status_code == 200, response.text
            (found[tag],) = hosts.calls
    return found


def moved(before, after):
    return {tag for tag in before if before[tag] != after[tag]}


# ---------------------------------------------------------------- affinity over hosts


def test_a_lost_host_moves_only_its_own_organizations(hosts, tmp_path):
    hosts.start(*HOSTS[:4])
    with edge(tmp_path, servers=hosts.setting(*HOSTS[:4])) as own:
        healthy(own, 4)
        before = host_by_tag(own, hosts)
        assert set(before.values()) == set(HOSTS[:4])
        hosts.stop(HOSTS[1])
        healthy(own, 3)
        after = host_by_tag(own, hosts)
    share = {tag for tag in before if before[tag] == HOSTS[1]}
    assert share <= moved(before, after)
    # Maglev keeps nearly all others where they are.
    assert len(moved(before, after) - share) <= TAGS // 20


def test_an_added_host_takes_only_its_share_and_two_edges_agree(hosts, tmp_path):
    hosts.start(*HOSTS)
    with (
        edge(tmp_path / "one", servers=hosts.setting(*HOSTS[:4])) as one,
        edge(tmp_path / "two", servers=hosts.setting(*reversed(HOSTS[:4]))) as two,
        edge(tmp_path / "more", servers=hosts.setting(*HOSTS)) as more,
    ):
        for own, count in ((one, 4), (two, 4), (more, 5)):
            healthy(own, count)
        before = host_by_tag(one, hosts)
        assert host_by_tag(two, hosts) == before
        after = host_by_tag(more, hosts)
    to_the_new_one = {tag for tag in after if after[tag] == HOSTS[4]}
    assert to_the_new_one <= moved(before, after)
    assert 0 < len(to_the_new_one) < TAGS / 5 * 1.6
    assert len(moved(before, after) - to_the_new_one) <= TAGS // 20


def test_while_a_host_is_lost_hardly_a_call_fails(hosts, tmp_path):
    hosts.start(*HOSTS[:3])
    with edge(tmp_path, servers=hosts.setting(*HOSTS[:3])) as own:
        healthy(own, 3)
        hosts.stop(HOSTS[0])
        with httpx.Client(base_url=f"http://127.0.0.1:{own.rest_port}") as client:
            statuses = Counter(
                client.post(
                    ROUTE, json={"numbers": []}, headers={"authorization": f"Bearer am_live_{tag:06}{0:038}"}
                ).status_code
                for tag in range(100)
            )
        # The edge tries a call on another host when the first did not accept it.
        assert set(statuses) <= {200, 503}
        assert statuses[200] >= 95
        healthy(own, 2)


def test_several_ports_of_a_host_are_several_servers(hosts, tmp_path):
    first = free_ports(2)
    with ExitStack() as stack:
        for port in (first, first + 1):
            stack.enter_context(running_server(port, sell, HOSTS[2]))
        with edge(tmp_path, servers=f"{HOSTS[2]}:{first}-{first + 1}") as own:
            healthy(own, 2)


# ---------------------------------------------------------------- names


class Resolver(socketserver.ThreadingUDPServer):
    """A DNS server that knows one name. It answers every question for it with `addresses`."""

    def __init__(self, *addresses):
        super().__init__(("127.0.0.1", 0), Answer)
        self.addresses = list(addresses)


class Answer(socketserver.BaseRequestHandler):
    def handle(self):
        question, socket = self.request
        end = question.index(b"\0", 12) + 5  # after the name: its type and class
        is_ipv4 = question[end - 4 : end - 2] == b"\0\1"
        records = [
            struct.pack("!HHHIH4B", 0xC00C, 1, 1, 1, 4, *map(int, address.split(".")))
            for address in (self.server.addresses if is_ipv4 else [])
        ]
        header = question[:2] + struct.pack("!HHHHH", 0x8180, 1, len(records), 0, 0)
        socket.sendto(header + question[12:end] + b"".join(records), self.client_address)


@pytest.fixture
def resolver():
    with Resolver(HOSTS[0]) as resolver:
        thread = threading.Thread(target=resolver.serve_forever)
        thread.start()
        yield resolver
        resolver.shutdown()
        thread.join()


def use(resolver):
    """A change of Envoy's configuration: it asks this resolver, not that of the machine."""
    address = {"socket_address": {"address": "127.0.0.1", "port_value": resolver.server_address[1]}}
    typed = "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig"

    def change(config):
        (cluster,) = [each for each in config["static_resources"]["clusters"] if each["name"] == "servers"]
        cluster["typed_dns_resolver_config"] = {
            "name": "envoy.network.dns_resolver.cares",
            "typed_config": {"@type": typed, "resolvers": [address]},
        }

    return change


def test_all_addresses_of_a_name_are_followed_as_they_change(hosts, resolver, tmp_path):
    hosts.start(*HOSTS[:3])
    with edge(tmp_path, use(resolver), servers=f"dns:servers.test:{hosts.port}") as own:
        healthy(own, 1)
        before = host_by_tag(own, hosts)
        resolver.addresses = HOSTS[:2]
        healthy(own, 2)
        after = host_by_tag(own, hosts)
        assert set(before.values()) == {HOSTS[0]}
        assert set(after.values()) == set(HOSTS[:2])
        resolver.addresses = HOSTS[:3]
        healthy(own, 3)
        resolver.addresses = [HOSTS[2]]
        wait_until(lambda: stat(own, "cluster.servers.membership_total") == 1)
        assert set(host_by_tag(own, hosts).values()) == {HOSTS[2]}
