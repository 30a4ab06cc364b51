# `make` lists the targets. Everything runs in .venv, made here from requirements.txt with nothing but Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"
.DEFAULT_GOAL := help
.PHONY: help run test test-faults test-mutants test-versions bench gen lint check-gen pins clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(READY) ## everything on this machine: PostgreSQL, servers, Envoy, a demo organization
	@exec $(BIN)/ordernumbers up

test: $(READY) ## the whole test suite on real PostgreSQL and real Envoy
	$(RUN) pytest -n 4

test-faults: $(READY) ## the fault suite in its full form: hundreds of kills, tens of thousands of requests
	$(RUN) pytest -n 3 tests/faults --full

test-mutants: $(READY) ## break the code in known ways, and see that a test notices each
	$(RUN) python -m tests.mutants

test-versions: $(READY) ## store, concurrency and fault tests on PostgreSQL 14 to 18 and with Python 3.11 to 3.13
	$(RUN) python -m tests.versions

bench: $(READY) ## orders against PostgreSQL's own benchmark, a quarter of an hour; QUICK=1: 2 minutes
	$(RUN) python -m tests.bench $(if $(QUICK),--quick)

gen: $(READY) ## regenerate gen/ from protos/
	$(RUN) python protos/generate.py

check-gen: $(READY) ## fail when gen/ is not what protos/ says
	$(RUN) python protos/generate.py && git diff --exit-code -- gen && test -z "$$(git status --porcelain -- gen)"

lint: $(READY) ## ruff, mypy, buf lint, squawk
	$(RUN) ruff check && $(RUN) ruff format --check && $(RUN) mypy server protos/generate.py
	$(RUN) python protos/generate.py --image $(VENV)/image.binpb && $(RUN) buf lint $(VENV)/image.binpb --path ordernumbers
	$(RUN) squawk server/store/migrations/versions/*.sql

pins: $(READY) ## resolve requirements.txt anew from pyproject.toml
	$(RUN) uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --all-extras --upgrade pyproject.toml -o requirements.txt

clean: ## remove .venv and the demo's data
	rm -rf $(VENV) .data

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed; set PYTHON=…" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
