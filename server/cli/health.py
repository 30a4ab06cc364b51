"""The command `health`, for probes: may the workers of this machine get calls?"""

from typing import Annotated

import typer

from server.cli.common import Json
from server.cli.output import print_result
from server.config import host_and_port, reachable, settings


def health(
    seconds: Annotated[float, typer.Option(min=0.1, max=60, help="How long to wait for each worker.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Ask the workers of this machine whether they could carry out an order.

    Run it with the settings of `serve`.
    The exit status is 0 if at least one worker is SERVING, and 1 otherwise.
    """
    host = reachable(settings().grpc_bind)
    statuses = {port: _status(host_and_port(host, port), seconds) for port in settings().grpc_ports}
    serving = "SERVING" in statuses.values()
    lines = [f"port {port}: {status}" for port, status in statuses.items()]
    print_result(as_json, {"serving": serving, "workers": statuses}, "\n".join(lines))
    if not serving:
        raise typer.Exit(1)


def _status(target: str, seconds: float) -> str:
    """Return the status in grpc.health.v1 of the worker there, or else the name of the gRPC error."""
    import grpc  # noqa: PLC0415
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse  # noqa: PLC0415

    # A proxy of the environment must not come between us and our own worker.
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        try:
            answer = check(HealthCheckRequest(service="ordernumbers.v1.PhoneNumberService"), timeout=seconds)
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(HealthCheckResponse.ServingStatus.Name(answer.status))
