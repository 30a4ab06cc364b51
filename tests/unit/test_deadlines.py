"""One timer for many deadlines."""

import asyncio
from dataclasses import dataclass, field

import pytest
import uvloop

from server.deadlines import Deadlines


@dataclass(eq=False)
class Waiting:
    deadline: float
    expired: list = field(default_factory=list)

    def expire(self):
        self.expired.append(asyncio.get_running_loop().time())


async def expired(waiting):
    """Wait until it has expired."""
    async with asyncio.timeout(10):
        while not waiting.expired:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_each_expires_once_at_its_deadline_and_not_before(new_loop):
    async def main():
        now, deadlines = asyncio.get_running_loop().time(), Deadlines()
        waiting = [Waiting(now + seconds) for seconds in (0.2, 0.05, 0.1, 0.05, 30, -1)]
        for each in waiting:
            deadlines.add(each)
        left = Waiting(now + 0.02)
        deadlines.add(left)
        deadlines.discard(left)
        await expired(waiting[0])
        assert [len(each.expired) for each in waiting] == [1, 1, 1, 1, 0, 1]
        late = Waiting(now + 0.3)
        deadlines.add(late)
        await expired(late)
        assert [len(each.expired) for each in (*waiting, late, left)] == [1, 1, 1, 1, 0, 1, 1, 0]
        assert all(at >= each.deadline for each in waiting for at in each.expired)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


def test_what_expires_may_add_and_discard():
    async def main():
        now, deadlines = asyncio.get_running_loop().time(), Deadlines()
        second = Waiting(now + 0.05)

        class First(Waiting):
            def expire(self):
                deadlines.discard(second)
                deadlines.add(third)

        third = Waiting(now + 0.08)
        deadlines.add(First(now + 0.02))
        deadlines.add(second)
        await expired(third)
        assert (second.expired, len(third.expired)) == ([], 1)

    asyncio.run(main())
