# make quickstart   train on handwritten digits, from nothing, in a few minutes
# make test         lint, types, import contract, tests
# make test-peer    the tests against escnn, in an environment of its own (they need gfortran)
# make bench        how fast it is beside what a user would take instead (some minutes; longer on a CPU)
# make docs         the documentation as a site, in site/
# Each makes its own virtual environment in .venv first (torch is large: some minutes, once).
# PYTHON=python3.12 takes another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEER := .venv-peer

.PHONY: quickstart test test-peer lint bench docs clean

quickstart: $(VENV)/installed
	$(BIN)/python launch/submit.py --config configs/quickstart.yaml --executor inline

test: lint
	$(BIN)/python -m pytest

test-peer: $(PEER)/installed
	IEN_TEST_PEER=1 $(PEER)/bin/python -m pytest tests/report/test_peer.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

# escnn wants an older numpy and scikit-learn: it has them to itself, and the rest from .venv.
$(PEER)/installed: $(VENV)/installed-dev
	$(PYTHON) -m venv $(PEER)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $(PEER)/rest.pth
	mv $(PEER)/rest.pth "$$($(PEER)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	$(PEER)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[peer]"
	touch $@

clean:
	rm -rf $(VENV) $(PEER) build site *.egg-info
