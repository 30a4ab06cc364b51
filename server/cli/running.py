"""Commands that run processes until they are stopped: `up`, `serve` and `edge`."""

from typing import Annotated

import typer

from server.cli.common import JsonErrors, database_url
from server.cli.output import print_json
from server.config import settings
from server.store.engine import admin_engine


def up(
    demo: Annotated[
        bool | None,
        typer.Option(
            "--demo/--no-demo",
            help="Create a demo organization, or not. Default: create it unless DATABASE_URL is set.",
        ),
    ] = None,
    migrate: Annotated[
        bool, typer.Option("--migrate", help="First upgrade the schema of DATABASE_URL's database.")
    ] = False,
    _as_json: JsonErrors = False,
) -> None:
    """Run everything on this machine until Ctrl-C: PostgreSQL, the workers, Envoy and a demo.

    If DATABASE_URL is set, it uses that database instead of its own.
    It then upgrades the schema only with --migrate.
    It creates a demo there only with --demo.
    """
    from server.run.up import run  # noqa: PLC0415

    run(settings(), demo=demo, migrate=migrate)


def serve(_as_json: JsonErrors = False) -> None:
    """Run only the gRPC workers. SIGTERM drains them. SIGHUP replaces them one by one."""
    from server.run.serve import serve as run  # noqa: PLC0415
    from server.store import migrations  # noqa: PLC0415

    url = database_url()
    # Without this check, every worker would fail and print the same error.
    migrations.require(admin_engine(url))
    run(settings(), url)


def edge(
    only_print: Annotated[bool, typer.Option("--print", help="Print Envoy's configuration and exit.")] = False,
    _as_json: JsonErrors = False,
) -> None:
    """Run only Envoy, configured from the settings."""
    from server.run.edge import run  # noqa: PLC0415
    from server.run.edge_config import edge_config  # noqa: PLC0415

    if only_print:
        print_json(edge_config(settings()))
    else:
        run(settings())
