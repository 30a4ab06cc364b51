"""Buyers at work: what a service goes through while something else happens to it."""

import threading

import httpx

from tests.support.callers import Rest

BUYERS = 8


class Load:
    """Buyers who order numbers over REST, each its own, until there are none left or nobody answers any more."""

    def __init__(self, rest_url, customer, numbers=3000):
        self.url = rest_url
        self.key = customer.key
        self.numbers = customer.numbers(numbers)
        self.sold = []
        self.refused = []  # the answers that are no sale
        self.enough = threading.Event()
        self._threads = [threading.Thread(target=self._buy, args=(i,)) for i in range(BUYERS)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        for thread in self._threads:
            thread.join()

    def _buy(self, index):
        with httpx.Client(base_url=self.url, timeout=20) as client:
            rest = Rest(client)
            for number in self.numbers[index::BUYERS]:
                if self.enough.is_set():
                    return
                try:
                    answer = rest(self.key, numbers=[number])
                except (httpx.TransportError, ValueError) as error:
                    self.refused.append(error)
                    return
                if answer.status == 200:
                    self.sold.append(number)
                else:
                    self.refused.append(answer)
