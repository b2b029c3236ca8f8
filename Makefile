# Two commands: `make train` and `make test`. Each makes .venv when it is missing; a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin

# In two processes: tests/conftest.py says how they share the tests.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: train test test-all lint clean

train: .venv/installed
	$(BIN)/metadist train jobs/quickstart.yaml

test: .venv/installed
	$(PYTEST) -m 'not slow'

test-all: .venv/installed
	$(PYTEST)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); sys.exit(None if ok else "metadist needs Python 3.11 to 3.13, this is %d.%d: say make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info
