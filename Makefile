# `make test` and `make test-real` are what CI runs; neither needs root. `make demo` builds its environment and then
# uses no network.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: env test test-real lint demo soak bench gpu-check clean

env: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder

test: env lint
	$(PYTEST) -m "not soak and not real"

# What needs the real images, models and DICOM files of the folder MEDIMG_TEST_DATA.
test-real: env
	$(PYTEST) -m "real and not soak"

lint: env
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: env
	$(BIN)/python benchmarks/demo.py $(if $(DATA),--data $(DATA)) $(if $(WEIGHTS),--weights $(WEIGHTS))

soak: env
	$(BIN)/python -m pytest -m soak
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile default

bench: env
	$(BIN)/python benchmarks/figures.py

# Without a GPU the tests are skipped, and the measurement ends with status 2.
gpu-check: env
	$(BIN)/python -m pytest -m gpu tests/gpu
	$(BIN)/python benchmarks/gpu_check.py $(if $(MODELS),--models $(MODELS) --data $(DATA)) --json gpu-check.json

clean:
	rm -rf $(VENV) build dist demo
