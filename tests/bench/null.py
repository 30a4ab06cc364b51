"""The side "null RPC": a gRPC server like ours, with a method that returns a constant.

The response is as long as that to an order of one number. `python -m tests.bench.null PORT` is one process.
"""

import asyncio
import sys

import grpc
import uvloop
from google.protobuf.timestamp_pb2 import Timestamp

from ordernumbers.v1.phone_number_service_pb2 import OrderNumbersResponse, PhoneNumber
from server.rpc.server import OPTIONS, SERVICE
from server.run.worker import use_batch_scheduling

ROW = PhoneNumber(
    id="00000000-0000-7000-8000-000000000000",
    number="+12000000000",
    number_type="local",
    sms_enabled=True,
    created_at=Timestamp(seconds=1_800_000_000),
    updated_at=Timestamp(seconds=1_800_000_000),
)
RESPONSE = OrderNumbersResponse(success=True, data=[ROW]).SerializeToString()


async def order_numbers(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    return RESPONSE


async def main(port: int) -> None:
    server = grpc.aio.server(options=OPTIONS)
    handlers = {"OrderNumbers": grpc.unary_unary_rpc_method_handler(order_numbers)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    use_batch_scheduling()  # as a worker does
    uvloop.run(main(int(sys.argv[1])))
