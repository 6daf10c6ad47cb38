# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv first.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint slow clean

help:
	@echo "make demo   set up and run the whole path on Two Rooms (minutes on two CPU cores)"
	@echo "make test   set up and pass the tests"
	@echo "make lint   set up and run ruff and pyright"
	@echo "make slow   set up and run the tests that take minutes"
	@echo "make clean  remove .venv"

demo: $(VENV)/core
	$(BIN)/jepaworld demo

test: $(VENV)/dev
	$(BIN)/python -m pytest

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

slow: $(VENV)/dev
	$(BIN)/python -m pytest --run-slow -m slow

clean:
	rm -rf $(VENV)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/core: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@ $(VENV)/core
