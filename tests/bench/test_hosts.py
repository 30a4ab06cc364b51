"""Two hosts with a network of their own serve behind one edge."""

import httpx

from deploy.ha.network import network
from tests.bench.connections import ROUTE
from tests.bench.parts import running_hosts
from tests.support.customer import Customer

HOSTS = ("first", "second")
CUSTOMERS = 20  # so that each host has some of them


def test_an_edge_spreads_customers_over_two_hosts(service, tmp_path):
    folder = tmp_path / "hosts"
    with (
        network(HOSTS) as hosts,
        running_hosts(folder, service.database.url, hosts, HOSTS, workers_each=1) as running,
        httpx.Client(base_url="http://{}:{}".format(*running.edge), timeout=30) as client,
    ):
        assert [host for host, _ in running.workers] == [hosts.address(name) for name in HOSTS]
        for _ in range(CUSTOMERS):
            customer = Customer.open(service.database.engine)
            numbers = customer.numbers(1)
            headers = {"authorization": f"Bearer {customer.key}"}
            response = client.post(ROUTE, headers=headers, json={"numbers": numbers})
            assert response.status_code == 200, response.text
            assert customer.owned() == set(numbers)
    logs = [(folder / f"{name}.log").read_text() for name in HOSTS]
    served = [log.count("PhoneNumberService.OrderNumbers") for log in logs]
    assert sum(served) == CUSTOMERS
    assert 0 not in served
