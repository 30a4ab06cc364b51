"""A batcher on a real database, and what it does with orders."""

import asyncio

from server.batching import Batcher
from server.config import Settings
from server.errors import Refusal


def run(url, work, **settings):
    """Do `work(batcher)` with a batcher with one order connection on that database."""

    async def main():
        batcher = Batcher(Settings(order_connections=1, **settings), url)
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
