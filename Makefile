# Penstock. Two commands do everything: `make demo` shows it, `make test` tests it. `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
STATE := $(or $(PENSTOCK_STATE_DIR),.penstock)
CONTRACT_BASE ?= $(shell git describe --tags --abbrev=0 --match 'v*' 2>/dev/null || echo HEAD~1)
ENVIRONMENT = $(PYTHON) deploy/local/environment.py

.DEFAULT_GOAL := help
.PHONY: help demo compile-demo up down status logs test compiled bench faults check format protos check-protos env dev torch constraints clean distclean

help: ## This list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

demo: env ## Environment, etcd, all services, real models, real requests, a table; then shuts down
	@$(BIN)/python -m examples.demo

compile-demo: ## Real models compressed and compiled by the build service, gated, deployed and called
	@$(ENVIRONMENT) compile
	@$(BIN)/python -m examples.compile_demo

up: env ## Start the suite and leave it running
	@$(BIN)/python -m deploy.local up

down: ## Drain and stop the suite
	@test -x $(BIN)/python && $(BIN)/python -m deploy.local down || { test ! -x $(BIN)/python && echo "nothing runs"; }

status: env ## Processes of the suite, then models, replicas and workers
	@$(BIN)/python -m deploy.local status && $(BIN)/penstock status

logs: env ## Follow the logs of every process (one: make logs SERVICE=gateway)
	@$(BIN)/penstock logs $(SERVICE) --follow

test: dev ## Environment if missing, then every test
	@$(BIN)/python -m pytest $(ARGS)

compiled: dev ## The hot path of gateway and worker as C (needs a C compiler; a minute): processes that start later run it
	@$(BIN)/python -m deploy.local.compiled

bench: dev ## Measure the data plane against its targets (needs h2load and wrk; about 4 minutes)
	@$(BIN)/python -m tests.bench.data_plane

faults: dev ## Every fault of the table under load, and what became of each request (about 15 minutes; ARGS=--thorough: an hour)
	@$(BIN)/python -m tests.fault.table $(ARGS)

check: dev check-protos ## Lint, types, import floors, contracts (under a minute)
	@$(BIN)/ruff format --check . && $(BIN)/ruff check .
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/mypy

format: dev ## Format the code and sort imports
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

protos: dev ## Generate the Python of protos/
	@$(BIN)/python protos/generate.py

check-protos: dev ## Generated code fresh, buf lint, no breaking change since the last release (or commit)
	@$(BIN)/python protos/generate.py --check
	@cd protos && ../$(BIN)/buf lint
	@if git cat-file -e $(CONTRACT_BASE):protos 2>/dev/null; then \
	  $(BIN)/buf breaking protos --against ".git#ref=$(CONTRACT_BASE),subdir=protos" ; fi

env: ## The virtual environment for `make demo`
	@$(ENVIRONMENT) demo

dev: ## The virtual environment for development and tests
	@$(ENVIRONMENT) dev

torch: dev ## Add the torch engine to the environment
	@$(ENVIRONMENT) torch

constraints: dev ## Write down every installed version as the pins (after changing a dependency)
	@{ sed -n '/^#/p' deploy/constraints.txt; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep -vi -e '^gt-all' -e '^torch' | sort -f; } > build-constraints.tmp
	@mv build-constraints.tmp deploy/constraints.txt

clean: down ## Stop the suite and remove its data, logs and built models
	@rm -rf $(STATE) build .pytest_cache .mypy_cache .ruff_cache .hypothesis

distclean: clean ## Remove the virtual environment too
	@rm -rf .venv
