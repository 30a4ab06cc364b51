"""How both clients send a call. They differ only in how they wait, and in how they end a slow attempt."""

import asyncio
import time
from typing import Self, TypeVar

import httpx2

from ordernumbers_client.attempts import Attempts, Options
from ordernumbers_client.call import Call
from ordernumbers_client.errors import OrderNumbersError

T = TypeVar("T")

SLACK_SECONDS = 0.1
"""The limits of httpx2 come first, because they say whether the request was sent."""


class SyncTransport:
    """Sends calls, and sends them again where that may help."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        deadline_seconds: float = 30,
        attempt_seconds: float = 10,
        http: httpx2.Client | None = None,
    ) -> None:
        """`deadline_seconds` is for a call with all its attempts: none starts later. Each call can have its own.

        An attempt fails after `attempt_seconds`. Only headers or a compressed body that come byte by byte can hold a
        sync client for longer. `http` is for proxies or certificates of your own. The client does not close it.
        """
        self._options = Options(base_url, api_key, deadline_seconds, attempt_seconds)
        self._http = http or httpx2.Client()
        self._owns_http = http is None

    def _send(self, call: Call[T], deadline_seconds: float | None) -> T:
        attempts = Attempts(call, self._options, deadline_seconds)
        while True:
            try:
                with self._http.stream(**attempts.request()) as response:
                    body = b"".join(map(attempts.in_time, response.iter_bytes()))
                return attempts.result(response, body)
            except (httpx2.RequestError, OSError, OrderNumbersError) as error:
                pause_seconds = attempts.pause_seconds(error)
            time.sleep(pause_seconds)

    def close(self) -> None:
        """Close the connections."""
        if self._owns_http:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncTransport:
    """Sends calls, and sends them again where that may help."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        deadline_seconds: float = 30,
        attempt_seconds: float = 10,
        http: httpx2.AsyncClient | None = None,
    ) -> None:
        """The arguments are those of the sync client."""
        self._options = Options(base_url, api_key, deadline_seconds, attempt_seconds)
        self._http = http or httpx2.AsyncClient()
        self._owns_http = http is None

    async def _send(self, call: Call[T], deadline_seconds: float | None) -> T:
        attempts = Attempts(call, self._options, deadline_seconds)
        while True:
            try:
                request = attempts.request()
                async with asyncio.timeout(request["timeout"] + SLACK_SECONDS):
                    response = await self._http.request(**request)
                return attempts.result(response, response.content)
            except (httpx2.RequestError, OSError, OrderNumbersError) as error:
                pause_seconds = attempts.pause_seconds(error)
            await asyncio.sleep(pause_seconds)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._owns_http:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
