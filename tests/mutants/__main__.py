"""Shows that tests fail when the code is wrong: `make test-mutants`.

Each mutant is a copy of the repository in which one text is replaced. At least one of its tests must fail.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.mutants import of_archive, of_numbers, of_orders, of_writes
from tests.mutants.mutant import Mutant

ROOT = Path(__file__).parents[2]
RUN_SECONDS_MAX = 600
PARTS = ("server", "gen", "envoy", "protos", "tests", "pyproject.toml", "README.md", "Makefile")
MUTANTS = (*of_orders.MUTANTS, *of_numbers.MUTANTS, *of_writes.MUTANTS, *of_archive.MUTANTS)


def main() -> int:
    """Run all mutants, or those whose names contain the given words. Return the number that no test noticed."""
    began = time.monotonic()
    wanted = [mutant for mutant in MUTANTS if all(word in mutant.name for word in sys.argv[1:])]
    for mutant in wanted:
        mutated(mutant, ROOT)
    survivors = [mutant.name for mutant in wanted if not is_noticed(mutant)]
    minutes = (time.monotonic() - began) / 60
    print(f"{len(wanted) - len(survivors)} of {len(wanted)} mutants were noticed, {minutes:.0f} minutes")
    for name in survivors:
        print(f"NOT NOTICED: {name}")
    return len(survivors)


def mutated(mutant: Mutant, root: Path) -> str:
    """The text of its file with the mistake. Exits if the code has changed and the mistake does not fit any more."""
    text = (root / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.name}: {mutant.file} has {text.count(mutant.old)} times {mutant.old!r}")
    return text.replace(mutant.old, mutant.new)


def is_noticed(mutant: Mutant) -> bool:
    """Whether a test fails, and not because it could not be run."""
    began = time.monotonic()
    with TemporaryDirectory(prefix="ordernumbers-mutant-") as folder:
        copy = Path(folder) / "copy"
        copy.mkdir()
        for part in PARTS:
            source = ROOT / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / part)
        (copy / mutant.file).write_text(mutated(mutant, copy))
        Path(folder).chmod(0o711)
        status, said = tested(copy, mutant.tests)
    failed = [line for line in said.splitlines() if line.startswith(("FAILED tests", "ERROR tests"))]
    noticed = status == 1 and bool(failed)
    by = failed[0].split(" - ")[0].split("::")[-1] if noticed else f"no test (pytest exited with {status})"
    print(f"{mutant.name}: noticed by {by}, {time.monotonic() - began:.0f} s", flush=True)
    return noticed


def tested(copy: Path, tests: str) -> tuple[int | None, str]:
    """pytest's exit status and output. The status is None if it did not end in time."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests.split()],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": f"{copy}:{copy / 'gen'}"},
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout


if __name__ == "__main__":
    sys.exit(main())
