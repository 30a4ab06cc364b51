"""What the tests of the Python client share."""

import asyncio

from ordernumbers_client import AsyncClient


class InStep:
    """An AsyncClient that is called as the sync one, so that the same tests are for both."""

    def __init__(self, *arguments, **options):
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*arguments, **options)

    def __enter__(self):
        self._runner.run(self._client.__aenter__())
        return self

    def __exit__(self, *_):
        self._runner.run(self._client.aclose())
        self._runner.close()

    def all_numbers(self, **arguments):
        async def rows():
            return [row async for row in self._client.all_numbers(**arguments)]

        return self._runner.run(rows())

    def __getattr__(self, name):
        return lambda *args, **arguments: self._runner.run(getattr(self._client, name)(*args, **arguments))


def free_numbers(client, count):
    return [row.number for row in client.search(quantity=count)]
