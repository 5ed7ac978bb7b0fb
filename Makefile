# `make study` and `make test` need a Python of at least 3.11 and nothing else; the rest is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install study test lint clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $$($(PYTHON) --version) found, Python 3.11 or newer needed; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,peft]'
	@touch $(STAMP)

study: $(STAMP)
	$(BIN)/grpovi compare experiments/quickstart/study.yaml

test: $(STAMP)
	@rm -f .coverage .coverage.*
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile
	@$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --fail-under=85

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build *.egg-info .coverage .coverage.*
