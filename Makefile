# make quickstart   train on handwritten digits, from nothing, in a few minutes
# make test         lint, types, import contract, tests
# make docs         the documentation as a site, in site/
# Each makes its own virtual environment in .venv first (torch is large: some minutes, once).
# PYTHON=python3.12 takes another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint docs clean

quickstart: $(VENV)/installed
	$(BIN)/python launch/submit.py --config configs/quickstart.yaml --executor inline

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build site *.egg-info
