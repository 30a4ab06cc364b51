"""Connects to a host of the database URL that is as the URL wants it: usually the one that accepts writes."""

import asyncio
import random
from collections import deque
from collections.abc import Collection
from typing import Any

from psycopg import AsyncConnection, Error, OperationalError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

HEAD_START_SECONDS = 0.25
"""How long a host is tried alone. RFC 8305 calls it the connection attempt delay, and recommends this value."""
PAUSE_SECONDS_MAX = 1.0
"""The longest pause before hosts that have failed are tried again. The first ones are shorter."""


async def connect_to_any(url: str, application: str) -> AsyncConnection:
    """Open a connection in autocommit mode to one of the hosts. Raises psycopg.Error when all have failed.

    Each host has the `connect_timeout` of the URL. psycopg tries a host only after the one before has failed. Here a
    silent host delays the next one by HEAD_START_SECONDS. While a silent host is all that we wait for, those that have
    failed are tried again: after a failover one of them is the new primary.
    """
    now = asyncio.get_running_loop().time
    seconds_max = _connect_timeout(url)
    ends = now() + (seconds_max or 0)
    pause_seconds = HEAD_START_SECONDS
    untried, failed = deque(_hosts(url)), deque[str]()
    attempts: dict[asyncio.Task[AsyncConnection], str] = {}
    errors: dict[str, Error] = {}
    try:
        while untried or attempts:
            if untried:
                host = untried.popleft()
                attempts[asyncio.create_task(_connect(host, application, seconds_max))] = host
            wait_seconds = HEAD_START_SECONDS if untried else pause_seconds
            ended, _ = await asyncio.wait(attempts, timeout=wait_seconds, return_when=asyncio.FIRST_COMPLETED)
            for attempt in ended:
                host = attempts.pop(attempt)
                error = attempt.exception()
                if not isinstance(error, Error):
                    return attempt.result()
                errors[host] = error
                failed.append(host)
            if not (ended or untried) and now() < ends:
                untried, failed = failed, untried
                pause_seconds = min(2 * pause_seconds, PAUSE_SECONDS_MAX)
    finally:
        await _end(attempts)
    raise OperationalError("; ".join(dict.fromkeys(map(str, errors.values()))))


async def _connect(url: str, application: str, seconds_max: float | None) -> AsyncConnection:
    # For a name with several addresses, psycopg takes as many times the timeout.
    try:
        async with asyncio.timeout(seconds_max):
            return await AsyncConnection.connect(url, autocommit=True, application_name=application)
    except TimeoutError:
        raise OperationalError(f"no connection within {seconds_max:g} s") from None


def _connect_timeout(url: str) -> float | None:
    """In seconds. None if the URL has no limit, or one that psycopg refuses."""
    seconds = str(conninfo_to_dict(url).get("connect_timeout", ""))
    return float(seconds) if seconds.isdecimal() and int(seconds) > 0 else None


def _hosts(url: str) -> list[str]:
    """A URL for each host, in the order in which they are tried. The same URL if it must be read as a whole."""
    given = conninfo_to_dict(url)
    hosts: dict[str, Any] = {name: str(given[name]).split(",") for name in ("host", "hostaddr") if name in given}
    counts = {len(each) for each in hosts.values()}
    ports = str(given.get("port", "")).split(",")
    # psycopg refuses counts that do not agree. A standby is preferred only among all hosts.
    if len(counts) != 1 or len(ports) not in (1, *counts) or "standby" in str(given.get("target_session_attrs")):
        return [url]
    (count,) = counts
    if "port" in given:
        hosts["port"] = ports * (count // len(ports))
    urls = [make_conninfo(url, **{name: each[i] for name, each in hosts.items()}) for i in range(count)]
    if given.get("load_balance_hosts") == "random":
        random.shuffle(urls)
    return urls


async def _end(attempts: Collection["asyncio.Task[AsyncConnection]"]) -> None:
    for attempt in attempts:
        attempt.cancel()
    for result in await asyncio.gather(*attempts, return_exceptions=True):
        if isinstance(result, AsyncConnection):  # two hosts answered at the same time
            await result.close()
