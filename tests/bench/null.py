"""The sides "null" and "idle batch": a gRPC server like ours, with a method that returns a constant.

The response is as long as that to an order of one number. `python -m tests.bench.null PORT` is one process. With
`--batch` its calls first wait as long as a batch of orders takes. All calls that arrive meanwhile share that wait.
"""

import asyncio
import sys

import grpc
import uvloop
from google.protobuf.timestamp_pb2 import Timestamp

from ordernumbers.v1.orders_pb2 import OrderNumbersResponse
from ordernumbers.v1.phone_numbers_pb2 import PhoneNumber
from server.rpc.server import OPTIONS, SERVICE
from server.run.worker import use_batch_scheduling

BATCH_SECONDS = 0.004
ROW = PhoneNumber(
    id="00000000-0000-7000-8000-000000000000",
    number="+12000000000",
    number_type="local",
    sms_enabled=True,
    created_at=Timestamp(seconds=1_800_000_000),
    updated_at=Timestamp(seconds=1_800_000_000),
)
RESPONSE = OrderNumbersResponse(success=True, data=[ROW]).SerializeToString()

Context = grpc.aio.ServicerContext[bytes, bytes]


async def respond(request: bytes, context: Context) -> bytes:
    return RESPONSE


class Batches:
    """Lets calls wait together."""

    def __init__(self) -> None:
        self._end: asyncio.Future[None] | None = None
        """Of the batch that waits now."""

    async def respond(self, request: bytes, context: Context) -> bytes:
        if self._end is None or self._end.done():
            loop = asyncio.get_running_loop()
            self._end = loop.create_future()
            loop.call_later(BATCH_SECONDS, self._end.set_result, None)
        await self._end
        return RESPONSE


async def main(port: int, *, in_batches: bool) -> None:
    server = grpc.aio.server(options=OPTIONS)
    method = Batches().respond if in_batches else respond
    handlers = {"OrderNumbers": grpc.unary_unary_rpc_method_handler(method)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    use_batch_scheduling()  # as a worker does
    uvloop.run(main(int(sys.argv[1]), in_batches="--batch" in sys.argv))
