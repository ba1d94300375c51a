# `make demo` and `make test` set everything up by themselves; nothing else is needed but Python 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bench clean
.DEFAULT_GOAL := test

demo: $(READY)  ## train, push, pull, swap and predict three real tasks on a real base (about three minutes)
	$(BIN)/python tools/demo.py

test: $(READY)  ## all tests
	$(BIN)/python -m pytest

lint: $(READY)  ## formatter, linter, strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)  ## every benchmark in its short form; tools/README.md says what each measures
	for bench in mask codecs hub swap; do $(BIN)/python tools/bench_$$bench.py --quick || exit 1; done

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo-out
