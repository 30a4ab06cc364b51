"""The load generator sends orders to the real server and the real edge, and counts the responses."""

import pytest

from tests.bench.generator import run
from tests.bench.load import Client, Load
from tests.support.customer import Customer

ORDERS = 40
LONGER_THAN_NEEDED_SECONDS = 30


@pytest.fixture(params=["grpc", "rest"])
def send(request, service):
    """A function that sends orders of a customer and returns the result."""

    def send(customer, orders):
        target = service.grpc_targets[0] if request.param == "grpc" else service.edge_target
        host, port = target.split(":")
        clients, in_flight = (2, 8) if request.param == "grpc" else (5, 1)
        return run(
            Load(
                transport=request.param,
                clients=[Client("all", (host, int(port)), in_flight, [customer.key])] * clients,
                orders={"all": orders},
                warm_seconds=0,
                seconds=LONGER_THAN_NEEDED_SECONDS,
            )
        ).groups["all"]

    return send


@pytest.fixture
def customer(service):
    return Customer.open(service.database.engine)


@pytest.mark.parametrize("numbers_each", [1, 100])
def test_every_order_is_sent_once_and_counted(send, customer, numbers_each):
    numbers = customer.numbers(ORDERS * numbers_each)
    result = send(customer, [numbers[i::ORDERS] for i in range(ORDERS)])
    assert (result.taken, result.succeeded_in_all, result.refused_in_all) == (ORDERS, ORDERS, 0)
    assert customer.owned() == set(numbers)


def test_a_refused_order_does_not_count_as_success(send, customer):
    (number,) = customer.numbers(1)
    result = send(customer, [[number]] * ORDERS)
    assert (result.succeeded_in_all, result.refused_in_all) == (1, ORDERS - 1)
    assert "insufficient inventory" in result.sample


def test_a_load_without_a_server_is_an_error(service, customer):
    client = Client("all", ("127.0.0.1", 1), 1, [customer.key])
    with pytest.raises(RuntimeError, match="the load generator ended"):
        run(Load("grpc", [client], {"all": [["+12000000000"]]}, warm_seconds=0, seconds=1))
