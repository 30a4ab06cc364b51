"""A batcher on a real database, and what it does with orders."""

import asyncio

from server.admission import Shared
from server.batching import Batcher
from server.config import Settings
from server.errors import Refusal


def new_batcher(url, **settings):
    """A batcher with one order connection on that database. Its event loop must run."""
    chosen = Settings(order_connections=1, **settings)
    return Batcher(chosen, url, Shared(chosen))


def run(url, work, **settings):
    """Do `work(batcher)` with a batcher with one order connection on that database."""

    async def main():
        batcher = new_batcher(url, **settings)
        try:
            return await work(batcher)
        finally:
            await batcher.close()

    return asyncio.run(main())


async def outcome(batcher, order, timeout_seconds=10.0):
    try:
        return "PLACED" if await batcher.place(order, timeout_seconds) else None
    except Refusal as refusal:
        return refusal.code
