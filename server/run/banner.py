"""What `ordernumbers up` prints when it is ready: addresses, and example calls that can be pasted into a shell."""

import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from server.config import Address, Settings, host_and_port, reachable
from server.run.edge_config import CONTRACT
from server.run.embedded.demo import KEY_FILE
from server.run.envoy_admin import admin_socket


class DemoNumbers(NamedTuple):
    """Three numbers for the banner's example calls, or none and the reason."""

    numbers: list[str]
    reason: str = ""


def banner(settings: Settings, demo: DemoNumbers, seconds: float) -> str:
    """Return the banner's text. `seconds` is how long the start took."""
    edge_address = _address(settings.bind, settings.rest_port)
    scheme = "https" if settings.tls_cert else "http"
    worker_addresses = ", ".join(_address(settings.grpc_bind, port) for port in settings.grpc_ports)
    return f"""
OrderNumbers is ready. It started in {seconds:.1f} s.

  REST and gRPC   {scheme}://{edge_address}   (health: GET /healthz)
  workers         {worker_addresses}   (gRPC, with reflection)
  Envoy's admin   curl --unix-socket {_quoted(admin_socket(settings))} http://localhost/
  data folder     {_shown(settings.data_dir)}

{_example_calls(settings, demo.numbers, edge_address) if demo.numbers else demo.reason}

Press Ctrl-C to stop everything. The logs follow.
"""


def _example_calls(settings: Settings, numbers: list[str], address: str) -> str:
    # The shell reads the key from its file, so the banner and the logs do not contain it.
    key = f'"Authorization: Bearer $(cat {_quoted(settings.data_dir / KEY_FILE)})"'
    ca = f" --cacert {_quoted(settings.tls_cert)}" if settings.tls_cert else ""
    scheme, transport = ("https", ca) if settings.tls_cert else ("http", " --http2-prior-knowledge")
    installed_buf = Path(sys.executable).with_name("buf")
    buf = _quoted(installed_buf) if installed_buf.exists() else "buf"
    schema = _quoted(CONTRACT / "descriptors.binpb")
    # Each call orders another number, so that all three succeed.
    bodies = [f"""-d '{{"numbers": ["{number}"]}}'""" for number in numbers]
    method = "ordernumbers.v1.PhoneNumberService/OrderNumbers"
    return f"""Order a number:

curl{ca} {scheme}://{address}/v1/phone-numbers/orders \\
  -H {key} \\
  -H 'Content-Type: application/json' {bodies[0]}

The same call over gRPC, with buf or with grpcurl:

{buf} curl --protocol grpc{transport} --schema {schema} \\
  -H {key} {bodies[1]} \\
  {scheme}://{address}/{method}

grpcurl -plaintext -H {key} \\
  {bodies[2]} {_address(settings.grpc_bind, settings.grpc_port)} {method}"""


def _address(host: Address, port: int) -> str:
    return host_and_port(reachable(host), port)


def _shown(path: Path) -> str:
    """Return the path as a user types it in the current folder."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _quoted(path: Path) -> str:
    return shlex.quote(_shown(path))
