# One command for each daily act. Every target makes the virtual environment it needs, so a fresh machine needs only python3 and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: setup demo test check format bench bench-plan soak test-install test-arm64 proto clean
.DEFAULT_GOAL := help

help:
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(VENV)/base: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/dev: $(VENV)/base
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

$(VENV)/bench: $(VENV)/dev
	CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_RPC=ON" $(BIN)/pip install --quiet --no-binary llama-cpp-python --editable '.[dev,bench]'
	@touch $@

setup: $(VENV)/dev ## make .venv with everything for development
demo: $(VENV)/base ## three nodes on this machine answer questions with the built-in model
	$(BIN)/mdi demo $(ARGS)
test: $(VENV)/dev ## run the tests
	$(BIN)/python -m pytest $(ARGS)
check: $(VENV)/dev ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
format: $(VENV)/dev ## fix what can be fixed by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
bench: $(VENV)/bench ## speed beside llama.cpp, in one process and over daemons
	$(BIN)/python -m tools.bench $(ARGS)
bench-plan: $(VENV)/dev ## plans against measurements, on a testbed of slow devices and bad links (root)
	$(BIN)/python -m tools.bench_plan $(ARGS)
soak: $(VENV)/dev ## long runs with seeded faults
	$(BIN)/python -m pytest -m soak --timeout 3600 $(ARGS)
test-install: $(VENV)/dev ## deploy/pi/install.sh in Debian systems that debootstrap makes (root, network)
	$(BIN)/python -m pytest -m install tests/deploy $(ARGS)
test-arm64: $(VENV)/dev ## the base install for 64-bit Arm: its wheels, and a cluster emulated as a Pi 4 and a Pi 5 (root, network)
	$(BIN)/python -m tools.arm64 $(ARGS)
proto: $(VENV)/dev ## regenerate mdi/wire/mdi_pb2*.py from proto/mdi.proto
	$(BIN)/python -m tools.generate_stubs
clean: ## remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info
