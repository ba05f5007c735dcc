# `make test` is everything that CI runs; it needs no root. `make demo` builds its environment and then uses no network.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: env test lint demo soak bench gpu-check clean

env: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

test: env lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder

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
