# `make` lists the targets. Everything runs in .venv. It is made here from requirements.txt and needs only Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
GENERATED := gen docs/settings.md clients/python/src/ordernumbers_client/models.py \
  clients/python/src/ordernumbers_client/client.py clients/typescript/src/models.ts clients/typescript/src/client.ts
SBOM ?= dist/sbom.json
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"
PIN = $(RUN) uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
.DEFAULT_GOAL := help
.PHONY: help run ha test test-fast check fmt test-faults test-ha test-mutants test-versions test-serializable bench gen lint \
  check-gen pins sbom clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(READY) ## run everything on this machine: PostgreSQL, servers, Envoy, a demo organization
	@exec $(BIN)/ordernumbers up

ha: $(READY) ## run seven hosts on this machine: Patroni and etcd on three, two with servers, two edges
	@exec $(BIN)/python -m deploy.ha

test: $(READY) ## run the whole test suite on real PostgreSQL and real Envoy
	$(RUN) pytest -n 4 --dist loadfile

test-fast: $(READY) ## run the tests that need no PostgreSQL, in under a minute
	$(RUN) pytest tests/unit

check: lint check-gen test ## run what CI runs: lint, check-gen and all tests

fmt: $(READY) ## format the code, and fix what ruff can fix
	$(RUN) ruff check --fix --exit-zero && $(RUN) ruff format

test-faults: $(READY) ## run the full form of the fault suite: hundreds of kills, half an hour
	$(RUN) pytest -n 3 tests/faults --full

test-mutants: $(READY) ## break the code in known ways, and show that a test notices each
	$(RUN) python -m tests.mutants

test-ha: $(READY) ## break the hosts of `make ha` under load, 52 times in 40 minutes, and print what was measured
	$(RUN) pytest tests/ha --full -s

test-versions: $(READY) ## run store, concurrency and fault tests on PostgreSQL 14 to 18 and Python 3.11 to 3.13
	$(RUN) python -m tests.versions

test-serializable: $(READY) ## run the tests of store, concurrency, admin commands and contract at SERIALIZABLE
	$(RUN) ORDERNUMBERS_ISOLATION=serializable pytest -n 3 tests/store tests/concurrency tests/admin tests/contract

bench: $(READY) ## measure orders against PostgreSQL's own benchmark, in half an hour (QUICK=1: in 2 minutes)
	$(RUN) python -m tests.bench $(if $(QUICK),--quick)

gen: $(READY) ## generate gen/ from protos/, the clients from gen/, and docs/settings.md from server/config.py
	$(RUN) python protos/generate.py && $(RUN) python clients/generate.py && $(RUN) python docs/generate.py

check-gen: gen ## fail if a generated file is not up to date
	git diff --exit-code -- $(GENERATED) && test -z "$$(git status --porcelain -- $(GENERATED))"

lint: $(READY) ## run ruff, mypy, buf lint, openapi-spec-validator and squawk
	$(RUN) ruff check && $(RUN) ruff format --check && $(RUN) mypy server deploy/ha protos/generate.py docs/generate.py clients
	$(RUN) python protos/generate.py --image $(VENV)/image.binpb && $(RUN) buf lint $(VENV)/image.binpb --path ordernumbers
	$(RUN) openapi-spec-validator gen/ordernumbers/v1/openapi.json
	$(RUN) squawk server/store/migrations/versions/*.sql

pins: $(READY) ## resolve requirements*.txt from pyproject.toml again
	$(PIN) --all-extras --upgrade pyproject.toml -o requirements.txt
	$(PIN) --extra edge --extra tracing -c requirements.txt --upgrade pyproject.toml -o requirements-runtime.txt
	echo hatchling | $(PIN) -c requirements.txt --upgrade - -o requirements-build.txt

sbom: $(READY) ## list what the image has of Python packages, as a CycloneDX SBOM in dist/sbom.json
	@mkdir -p $(dir $(SBOM))
	cat requirements-runtime.txt requirements-docs.txt | $(RUN) cyclonedx-py requirements --pyproject pyproject.toml \
	  --mc-type application --output-reproducible --output-format JSON --output-file $(SBOM) -

clean: ## remove .venv and the demo's data
	rm -rf $(VENV) .data

$(READY): requirements.txt requirements-docs.txt pyproject.toml clients/python/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed; set PYTHON=…" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-docs.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . -e clients/python
	@touch $@
