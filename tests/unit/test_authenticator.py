"""How keys are remembered: looked up together, renewed by use, forgotten in time."""

import asyncio
import time
from uuid import UUID

import pytest

from server import keys
from server.errors import Code, Refusal
from server.rpc import auth
from server.rpc.auth import Authenticator
from server.store.reads import Principal

KEYS = [keys.new_key(UUID(int=i)) for i in range(5)]


class Database:
    """Knows all but the last key, and remembers what it was asked."""

    def __init__(self):
        self.asked = []
        self.valid = {keys.digest(key) for key in KEYS[:-1]}

    async def find(self, digests):
        self.asked.append(set(digests))
        await asyncio.sleep(0)
        return {each: Principal(each, each.hex(), "", frozenset()) for each in digests if each in self.valid}


def authenticate(authenticator, key):
    return authenticator.authenticate([f"Bearer {key}"])


def test_keys_wanted_together_are_looked_up_together():
    async def main():
        database = Database()
        authenticator = Authenticator(database.find, 2.0, 100)
        calls = [authenticate(authenticator, key) for key in KEYS * 2]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(answer, Refusal) for answer in answers] == [False, False, False, False, True] * 2
        assert len(database.asked) == 1

    asyncio.run(main())


def test_a_failing_look_up_fails_those_who_wait_for_it_and_nobody_later():
    async def main():
        database = Database()

        async def fail(digests):
            raise TimeoutError

        authenticator = Authenticator(fail, 2.0, 100)
        with pytest.raises(TimeoutError):
            await authenticate(authenticator, KEYS[0])
        authenticator._find = database.find
        assert (await authenticate(authenticator, KEYS[0])).digest == keys.digest(KEYS[0])

    asyncio.run(main())


def test_a_key_is_trusted_for_a_while_from_when_it_was_last_seen():
    async def main():
        database = Database()
        authenticator = Authenticator(database.find, 2.0, 100)
        principal = await authenticate(authenticator, KEYS[0])
        database.valid.clear()
        assert await authenticate(authenticator, KEYS[0]) == principal
        authenticator.renew(principal, time.monotonic() - 2.0)
        with pytest.raises(Refusal):
            await authenticate(authenticator, KEYS[0])

    asyncio.run(main())


def test_new_keys_beyond_the_budget_are_refused_unasked_and_keys_seen_valid_are_always_looked_up():
    async def main():
        database = Database()
        authenticator = Authenticator(database.find, 0.0, 2)  # nothing is trusted without a look-up
        for _ in range(5):
            assert (await authenticate(authenticator, KEYS[0])).digest == keys.digest(KEYS[0])
        answers = [await answer(authenticator, key) for key in (KEYS[-1], KEYS[-1], KEYS[1])]
        assert answers == [Code.UNAUTHORIZED, Code.RATE_LIMITED, Code.RATE_LIMITED]
        assert len(database.asked) == 6
        assert (await authenticate(authenticator, KEYS[0])).digest == keys.digest(KEYS[0])

    asyncio.run(main())


async def answer(authenticator, key):
    try:
        await authenticate(authenticator, key)
    except Refusal as refusal:
        return refusal.code


def test_the_key_seen_longest_ago_is_forgotten_first(monkeypatch):
    monkeypatch.setattr(auth, "CACHED_KEYS_MAX", 2)

    async def main():
        database = Database()
        authenticator = Authenticator(database.find, 2.0, 100)
        for key in (KEYS[0], KEYS[1]):
            await authenticate(authenticator, key)
        authenticator.renew(await authenticate(authenticator, KEYS[0]), time.monotonic())
        await authenticate(authenticator, KEYS[2])
        asked = len(database.asked)
        await authenticate(authenticator, KEYS[0])
        assert len(database.asked) == asked
        await authenticate(authenticator, KEYS[1])
        assert len(database.asked) == asked + 1

    asyncio.run(main())
