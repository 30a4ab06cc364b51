"""The files of deploy/, as the tests of them read them."""

import subprocess
from functools import cache
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())

needs_kubectl = pytest.mark.skipif(not which("kubectl"), reason="kubectl, which renders the overlays, is not installed")
needs_systemd = pytest.mark.skipif(not which("systemd-analyze"), reason="systemd-analyze is not installed")


def run(*command: str | Path) -> str:
    """Run a tool, which must succeed. Return what it printed on stdout."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@cache
def rendered(overlay: str) -> str:
    """The objects of an overlay of deploy/kubernetes as YAML, as `kubectl apply -k` sends them."""
    return run("kubectl", "kustomize", KUBERNETES / "overlays" / overlay)


@cache
def all_objects(overlay: str) -> list[dict[str, Any]]:
    """The objects of an overlay."""
    return list(yaml.safe_load_all(rendered(overlay)))


def objects(overlay: str, *kinds: str) -> list[dict[str, Any]]:
    """The objects of these kinds."""
    return [each for each in all_objects(overlay) if each["kind"] in kinds]


def compose() -> dict[str, Any]:
    """deploy/compose.yaml."""
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def unit_lines(path: Path) -> list[tuple[str, str]]:
    """The name and the value of each setting in a systemd unit. A name may occur several times."""
    pairs = [line.split("=", 1) for line in path.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return [(name, value) for name, value in pairs]
