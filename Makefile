# `make run` and `make test` do everything on a machine with Python 3.11, make and a C compiler.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install run test check bench bench-gpu clean

help:
	@echo "make run     the main job: mutate the bigfish parent, select, play unseen levels"
	@echo "make test    lint, types and tests"
	@echo "make bench   the benchmarks that a CPU can run"
	@echo "make bench-gpu   those that a CUDA device can run"
	@echo "make clean   removes the virtual environment and caches, keeps runs/"

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

run: install
	$(BIN)/python scripts/procgen_ensemble.py --env bigfish

# in the files' own order: those of few, long tests are not left for the end
test: install check
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m benchmarks cpu

bench-gpu: install
	$(BIN)/python -m benchmarks gpu

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
