# `make demo` and `make test` set everything up by themselves; nothing else is needed but Python 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-gpu soak fuzz lint bench quality clean
.DEFAULT_GOAL := test

demo: $(READY)  ## train, push, pull, swap, predict and serve four real tasks on a real base (about three minutes)
	$(BIN)/python tools/demo.py

test: $(READY)  ## all tests, on two cores side by side
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-gpu: $(READY)  ## the kernel for GPUs, by Triton's interpreter where there is none; installs triton, 1 GB
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[gpu]'
	$(BIN)/python -m pytest tests/mixing/test_gpu.py

soak: $(READY)  ## the faults suite at every moment, thousands of rounds; fills the table in tests/README.md
	DELTAHUB_SOAK=1 $(BIN)/python -m tests.faults.count

fuzz: $(READY)  ## coverage-guided fuzzing of every reader, SECONDS (60) for each; needs atheris, which it installs
	$(BIN)/python -m pip install --quiet 'atheris>=3'
	$(BIN)/python tools/fuzz/run.py --seconds $(or $(SECONDS),60)

lint: $(READY)  ## formatter, linter, strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)  ## every benchmark in its short form; tools/README.md says what each measures
	for bench in mask codecs hub transfer swap mixed tuning; do $(BIN)/python tools/bench_$$bench.py --quick || exit 1; done

quality: $(READY)  ## accuracy by stored bytes, every method; takes hours; DELTAHUB_DATA holds TASK/{train,validation,test}.jsonl
	$(BIN)/python tools/quality/run.py
	$(BIN)/python tools/quality/table.py quality.jsonl
	$(BIN)/python tools/quality/plot.py quality.jsonl

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo-out
