"""Customers of the shared service."""

import pytest

from tests.support.customer import Customer


@pytest.fixture
def open_customer(service):
    return lambda **credit: Customer.open(service.database.engine, **credit)
