# Everything runs inside .venv; a machine needs only make and Python >= 3.11.
# PYTHON=/path/to/python3.12 chooses another interpreter for a new .venv.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.setup-stamp
CHECKED := bss_sync connectors tests .ci $(wildcard migrations bench)
WORKERS ?= 2
ROUNDS ?= 1
BENCH_ROUNDS ?= 3

# Tools want a home they can write to (caches, embedded data). Without one, the checkout lends its own.
ifneq ($(shell test -n "$$HOME" && test -d "$$HOME" && test -w "$$HOME" && echo usable),usable)
export HOME := $(CURDIR)/.cache/home
$(shell mkdir -p "$(HOME)")
endif
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 20

.PHONY: setup
setup: $(STAMP) ## make .venv from the lock file and install the program into it

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv

# The build backends come first and from a lock too, so that nothing is fetched that has no hash.
INSTALL := $(BIN)/python -m pip install --quiet --no-build-isolation
$(STAMP): requirements-build.lock requirements-dev.lock pyproject.toml | $(BIN)/python
	$(INSTALL) --require-hashes --requirement requirements-build.lock
	$(INSTALL) --require-hashes --requirement requirements-dev.lock
	$(INSTALL) --no-deps --editable .
	@touch $@

.PHONY: demo
demo: setup ## the reference scenario through real processes
	$(BIN)/bss-sync demo

.PHONY: test
test: lint ## format check, lint, types, import contracts and every test
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

N ?= 10000
SEED ?= 0
.PHONY: simulate
simulate: setup ## N seeded schedules of the whole line in memory, and N/100 on PostgreSQL
	$(BIN)/python -m tests.simulation --schedules $(N) --seed $(SEED)
	$(BIN)/python -m tests.simulation --postgres $$(( ($(N) + 99) / 100 )) --seed $(SEED)

.PHONY: protections
protections: setup ## each protection taken out of a copy, once: its test must notice (half an hour and more)
	$(BIN)/python -m tests.protections

.PHONY: chaos
chaos: setup ## kill, stop and cut off real processes under load, in full size: SEED=…, ROUNDS=…
	$(BIN)/python -m tests.chaos --seed $(SEED) --rounds $(ROUNDS)

.PHONY: bench
bench: setup ## measure beside the peers; report in build/bench: QUICK=1 shows only that everything works
	$(BIN)/python -m bench $(if $(QUICK),--quick) --rounds $(BENCH_ROUNDS) --out build/bench

.PHONY: lint
lint: setup ## format check, lint, types and import contracts
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

.PHONY: format
format: setup ## format and sort imports
	$(BIN)/ruff check --select I --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

.PHONY: docs
docs: setup ## write the generated pages of docs/ anew; a test tells when they are stale
	$(BIN)/python .ci/docs.py

.PHONY: wheel
wheel: setup ## dist/*.whl, built without the network
	$(BIN)/python -m build --wheel --no-isolation

.PHONY: licences
licences: setup ## the licence of every package that the program brings
	$(BIN)/python .ci/licences.py

# One resolution serves every platform; the lock names versions and hashes, never where they come from.
LOCK := $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --custom-compile-command 'make lock'

.PHONY: lock
lock: $(BIN)/python ## resolve the dependencies anew and write the lock files
	@test -x $(BIN)/uv || { echo "make lock needs uv in .venv: make setup" >&2; exit 1; }
	$(LOCK) pyproject.toml --output-file requirements.lock
	$(LOCK) --group build --output-file requirements-build.lock
	$(LOCK) pyproject.toml --group dev --constraint requirements.lock --output-file requirements-dev.lock
	@! grep -nE '://' requirements*.lock || { echo "a lock file names an address" >&2; exit 1; }

.PHONY: clean
clean: ## remove what was built and cached; .venv stays
	rm -rf dist build .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
