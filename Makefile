# Python 3.11 or newer with venv, git and make are all that is needed; the rest comes by lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input
UV_VERSION := 0.13.9

.DEFAULT_GOAL := help
.PHONY: run install test demo bench lint format coverage docs lock clean help system-packages

# `exec`: the server takes the place of make's shell, so that a signal to make reaches it.
run: install ## Install what is needed and serve on http://127.0.0.1:8080
	@exec $(BIN)/caravan up

install: $(VENV)/.run ## Only prepare .venv

test: $(VENV)/.dev system-packages lint ## Install what is needed and run all checks
	$(BIN)/python -m pytest -m 'not alone' -n 4 --dist loadfile --no-loadscope-reorder || $(ASK_AGAIN)
	$(BIN)/python -m pytest -m alone || $(ASK_AGAIN)

# The files in the order of their names: else those with few tests, which are the slow ones, would come last.
# A test that fails is asked once more, with nothing beside it, and has to pass there. Its failure stays in the output.
# Only status 1 is a failed test; whatever else ended pytest is no chance.
ASK_AGAIN = { test $$? -eq 1 && echo "== FLAKY unless it fails again: see CONTRIBUTING.md" && \
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none; }

demo: install ## Play with a fleet of three simulated Ollama servers
	@exec $(BIN)/python -m tests.fakes.fleet

bench: $(VENV)/.dev system-packages ## Measure, each figure as a ratio to a baseline of the same run
	@exec $(BIN)/python -m bench

# There is a folder of that name.
.PHONY: conformance
conformance: $(VENV)/.dev system-packages ## Put Caravan and nginx through the conformance suite, and write docs/conformance.md
	@exec $(BIN)/python -m tests.conformance_columns

.PHONY: soak
soak: $(VENV)/.dev ## Send ten thousand mixed requests over backends that misbehave (SOAK_SEED=n for other ones)
	SOAK_REQUESTS=$${SOAK_REQUESTS:-10000} $(BIN)/python -m pytest -rP tests/process/test_soak.py

lint: $(VENV)/.dev ## The checks that run nothing: style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev ## Put the code into the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: $(VENV)/.dev system-packages ## Run the tests and show which lines they never reach
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

docs: install ## Write docs/settings.md from the table in proxy_app/settings/table.py
	@mkdir -p docs
	$(BIN)/python -c 'from proxy_app.settings import settings_doc; print(settings_doc(), end="")' \
		> docs/settings.md

# One resolution for every Python from 3.11 on and every platform; the markers in the lock
# choose. The dev lock is the run lock and more, never another version of the same thing.
lock: install ## Write requirements/*.txt anew from setup.cfg (UPGRADE=1 takes newer versions)
	$(PIP_INSTALL) uv==$(UV_VERSION)
	$(call UV_COMPILE,run)
	$(call UV_COMPILE,dev,--extra dev --constraint requirements/run.txt)

UV_COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate $(if $(UPGRADE),--upgrade) \
	--custom-compile-command 'make lock' $(2) \
	--output-file requirements/$(1).txt setup.cfg requirements/build.in

clean: ## Remove .venv and everything that was built (never data/)
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* .hypothesis
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# What only root can install. Without root the tests that need it are skipped, and say so.
system-packages:
	@.ci/system-packages

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo >&2 "Caravan needs Python 3.11 or newer, and $(PYTHON) is not that." \
			"Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo >&2 "$(PYTHON) comes without venv. On Debian and Ubuntu: apt install python3-venv"; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)

# Stamps: each is younger than what it was made from, or it is made again. Nothing is taken
# from outside the lock: setuptools, which links the checkout into .venv, is in it too.
$(VENV)/.run: $(BIN)/python requirements/run.txt setup.cfg pyproject.toml
	$(PIP_INSTALL) --require-hashes --requirement requirements/run.txt
	PYTHONWARNINGS=ignore $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements/dev.txt
	$(PIP_INSTALL) --require-hashes --requirement requirements/dev.txt
	@touch $@
