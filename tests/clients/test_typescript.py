"""The TypeScript client against a real `ordernumbers up`: its own tests, and the example of its README.

They are skipped without Node.js, and where npm cannot reach its registry.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[2] / "clients/typescript"
NODE_MAJOR_MIN = 20
NO_REGISTRY = re.compile(r"npm error code (ENOTFOUND|EAI_AGAIN|ECONN\w+|ETIMEDOUT|ENETUNREACH|E403|E404|E5\d\d)")


def run(*command, cwd, **variables):
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A copy of the package, built. So that tests that run at the same time do not write into one folder."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("no Node.js with npm on PATH")
    version = run("node", "--version", cwd=CLIENT).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < NODE_MAJOR_MIN:
        pytest.skip(f"Node.js {version} is older than {NODE_MAJOR_MIN}")
    folder = tmp_path_factory.mktemp("typescript") / "client"
    shutil.copytree(CLIENT, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    installed = run("npm", "ci", "--no-audit", "--no-fund", "--fetch-retry-mintimeout=1000", cwd=folder)
    if NO_REGISTRY.search(installed.stderr):
        pytest.skip(f"npm cannot install: {installed.stderr.splitlines()[0]}")
    assert installed.returncode == 0, installed.stderr
    compiled = run("npm", "run", "build", cwd=folder)
    assert compiled.returncode == 0, compiled.stdout
    return folder


def test_the_tests_of_the_package_pass(built, up, api_key):
    done = run("npm", "test", cwd=built, EDGE_URL=up.rest_url, API_KEY=api_key)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"pass (\d+)", done.stdout)[1]) > 15


def test_the_readme_is_true(built, up):
    (example,) = re.findall(r"```js\n(.*?)```", (CLIENT / "README.md").read_text(), re.DOTALL)
    # Inside the package its own name can be imported.
    program = built / "dist/readme.js"
    program.write_text(example.replace("http://127.0.0.1:8080", up.rest_url))
    done = run("node", str(program), cwd=up.folder)
    assert (done.stderr, done.returncode) == ("", 0)
    assert re.fullmatch(r"\+1\d{10} is ours\n\[ '\+1\d{10}' \] gone, request [0-9A-Z]{26}\n", done.stdout)


def test_the_lock_file_names_no_registry():
    assert "://" not in (CLIENT / "package-lock.json").read_text()
