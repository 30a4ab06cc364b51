"""What `ordernumbers up` prints when it is ready: addresses, and example calls that can be pasted into a shell."""

import shlex
import sys
from pathlib import Path

from server.config import Address, Settings, host_and_port, reachable
from server.run.docs_page import PAGE_PATH, has_docs_page
from server.run.edge_config import CONTRACT
from server.run.embedded.demo import AREA_CODE, KEY_FILE
from server.run.envoy_admin import admin_socket

EXAMPLE_NUMBERS = 3
"""How many numbers the example calls order."""


def banner(settings: Settings, no_demo_reason: str, seconds: float) -> str:
    """Return the banner's text. `seconds` is how long the start took.

    `no_demo_reason` says why there are no numbers for example calls. It is empty if there are some.
    """
    edge_address = _address(settings.bind, settings.rest_port)
    scheme = "https" if settings.tls_cert else "http"
    edge = f"{scheme}://{edge_address}"
    docs = f"  reference       {edge}{PAGE_PATH}   (to try each call in a browser)\n" if has_docs_page(settings) else ""
    worker_addresses = ", ".join(_address(settings.grpc_bind, port) for port in settings.grpc_ports)
    metrics_ports = [port for port in (settings.edge_metrics_port, *settings.metrics_ports) if port]
    metrics_addresses = ", ".join(_address(settings.metrics_bind, port) for port in metrics_ports)
    return f"""
OrderNumbers is ready. It started in {seconds:.1f} s.

  REST and gRPC   {edge}   (health: GET /healthz)
{docs}  workers         {worker_addresses}   (gRPC, with reflection)
  Envoy's admin   curl --unix-socket {_quoted(admin_socket(settings))} http://localhost/
  metrics         {metrics_addresses or "off"}   (GET /metrics, for Prometheus)
  data folder     {_shown(settings.data_dir)}

{no_demo_reason or _example_calls(settings, edge_address)}

Press Ctrl-C to stop everything. The logs follow.
"""


def _example_calls(settings: Settings, address: str) -> str:
    # The shell reads the key from its file, so the banner and the logs do not contain it.
    key = f'"Authorization: Bearer $(cat {_quoted(settings.data_dir / KEY_FILE)})"'
    ca = f" --cacert {_quoted(settings.tls_cert)}" if settings.tls_cert else ""
    scheme, transport = ("https", ca) if settings.tls_cert else ("http", " --http2-prior-knowledge")
    edge = f"{scheme}://{address}"
    worker = _address(settings.grpc_bind, settings.grpc_port)
    return f"{_rest_calls(edge, key, ca)}\n\n{_grpc_calls(edge, worker, key, transport)}"


def _rest_calls(edge: str, key: str, ca: str) -> str:
    numbers, json = f"{edge}/v1/phone-numbers", "'Content-Type: application/json'"
    return f"""Search for numbers:

FOUND=$(curl -s{ca} {numbers}/search \\
  -H {key} \\
  -H {json} -d '{{"area_code": "{AREA_CODE}", "quantity": {EXAMPLE_NUMBERS}}}'); echo "$FOUND"
number() {{ echo "$FOUND" | grep -o '+[0-9]*' | sed -n "$1p"; }}

Order the first number that the search returned:

curl{ca} {numbers}/orders \\
  -H {key} \\
  -H {json} -d {_order(1)}"""


def _grpc_calls(edge: str, worker: str, key: str, transport: str) -> str:
    installed_buf = Path(sys.executable).with_name("buf")
    buf = _quoted(installed_buf) if installed_buf.exists() else "buf"
    schema = _quoted(CONTRACT / "descriptors.binpb")
    method = "ordernumbers.v1.PhoneNumberService/OrderNumbers"
    return f"""Order the others over gRPC, with buf or with grpcurl:

{buf} curl --protocol grpc{transport} --schema {schema} \\
  -H {key} -d {_order(2)} \\
  {edge}/{method}

grpcurl -plaintext -H {key} \\
  -d {_order(3)} {worker} {method}"""


def _order(position: int) -> str:
    """An order of one of the numbers that were found, as a word of the shell."""
    # The shell function `number` needs only grep and sed, because jq is not installed everywhere.
    return f"""'{{"numbers": ["'$(number {position})'"]}}'"""


def _address(host: Address, port: int) -> str:
    return host_and_port(reachable(host), port)


def _shown(path: Path) -> str:
    """Return the path as a user types it in the current folder."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _quoted(path: Path) -> str:
    return shlex.quote(_shown(path))
