"""Orders in the background, while a test does something else to the service."""

import threading

import httpx

from tests.support.callers import Rest

THREADS = 8


class BackgroundOrders:
    """Threads that order numbers over REST, each number once.

    A thread ends when it has no numbers left or gets no response. All end after `enough` is set.
    """

    def __init__(self, rest_url, customer, numbers=3000):
        self.url = rest_url
        self.key = customer.key
        self.numbers = customer.numbers(numbers)
        self.sold = []
        self.refused = []  # responses that are not 200, and exceptions
        self.enough = threading.Event()
        self._threads = [threading.Thread(target=self._order, args=(i,)) for i in range(THREADS)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        for thread in self._threads:
            thread.join()

    def _order(self, index):
        with httpx.Client(base_url=self.url, timeout=20) as client:
            rest = Rest(client)
            for number in self.numbers[index::THREADS]:
                if self.enough.is_set():
                    return
                try:
                    response = rest(self.key, numbers=[number])
                except (httpx.TransportError, ValueError) as error:
                    self.refused.append(error)
                    return
                if response.status == 200:
                    self.sold.append(number)
                else:
                    self.refused.append(response)
