"""Connects to a host of the database URL that is as the URL wants it: usually the one that accepts writes."""

import asyncio
import random
from collections import deque
from collections.abc import Collection

from psycopg import AsyncConnection, Error, OperationalError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

HEAD_START_SECONDS = 0.25
"""How long a host is tried alone. RFC 8305 calls it the connection attempt delay, and recommends this value."""


async def connect_to_any(url: str, application: str, again_seconds_max: float) -> AsyncConnection:
    """Open a connection in autocommit mode to one of the hosts. Raises psycopg.Error when all have failed.

    psycopg tries a host only after the one before has failed, perhaps by its `connect_timeout`. Here a silent host
    delays the next one by HEAD_START_SECONDS. While a silent host is all that we wait for, those that have refused are
    tried again for `again_seconds_max`. After a failover one of them is the new primary.
    """
    now = asyncio.get_running_loop().time
    ends = now() + again_seconds_max
    untried, refused = deque(_hosts(url)), deque[str]()
    attempts: dict[asyncio.Task[AsyncConnection], str] = {}
    errors: dict[str, Error] = {}
    try:
        while untried or attempts:
            if untried:
                host = untried.popleft()
                opening = AsyncConnection.connect(host, autocommit=True, application_name=application)
                attempts[asyncio.create_task(opening)] = host
            ended, _ = await asyncio.wait(attempts, timeout=HEAD_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            for attempt in ended:
                host = attempts.pop(attempt)
                error = attempt.exception()
                if not isinstance(error, Error):
                    return attempt.result()
                errors[host] = error
                refused.append(host)
            if not (ended or untried) and now() < ends:
                untried, refused = refused, untried
    finally:
        await _end(attempts)
    raise OperationalError("; ".join(dict.fromkeys(map(str, errors.values()))))


def _hosts(url: str) -> list[str]:
    """A URL for each host, in the order in which they are tried. It is the same URL if there is only one."""
    given = conninfo_to_dict(url)
    values = {name: str(given[name]).split(",") for name in ("host", "hostaddr", "port") if name in given}
    count = max(len(values.get(name, [])) for name in ("host", "hostaddr"))
    if count < 2 or any(len(each) not in (1, count) for each in values.values()):
        return [url]  # psycopg raises an error if the numbers of values do not agree
    hosts = [make_conninfo(url, **{name: each[i % len(each)] for name, each in values.items()}) for i in range(count)]
    if given.get("load_balance_hosts") == "random":
        random.shuffle(hosts)
    return hosts


async def _end(attempts: Collection["asyncio.Task[AsyncConnection]"]) -> None:
    for attempt in attempts:
        attempt.cancel()
    for result in await asyncio.gather(*attempts, return_exceptions=True):
        if isinstance(result, AsyncConnection):  # two hosts answered at the same time
            await result.close()
