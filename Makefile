# Two commands do all set-up on a fresh machine: `make run` and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PROJECTS := $(wildcard packages/*/pyproject.toml)
C_LIKE := $(shell find packages/*/native packages/*/tests benchmarks examples -name '*.[ch]' -o -name '*.cpp')
LINTED := emucxl tokenweave # packages whose C and C++ the linter reads
NATIVE := $(shell find packages/*/native -type f) $(wildcard packages/*/CMakeLists.txt)
PREFIX ?= /usr/local
BUILD_C ?= build/c

.PHONY: help run chat test test-slow test-all check format native venv docs pictures bench gpu gpu-quick wheel install-c clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

# torch first, so that the other packages are resolved against this build and pull no second one.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; got $$($(PYTHON) --version). Set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet '$(TORCH)'
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(PROJECTS) $(NATIVE)
	$(BIN)/pip install --quiet --editable packages/emucxl --editable packages/tokenweave --editable packages/interlace
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable 'packages/interlace[dev]'
	@touch $@

venv: $(VENV)/.dev  ## set up the development environment

native: $(VENV)/.dev  ## rebuild the native library

run: $(VENV)/.installed  ## a real chat model, split over two ranks, answers a question
	@$(BIN)/interlace generate --model smollm2 --tp 2 --temperature 0 --max-tokens 64 \
	  --table "What is the capital of France, and what is it known for?"

chat: $(VENV)/.installed  ## talk to the embedded model
	@$(BIN)/interlace chat --model smollm2 --tp 2

check: $(VENV)/.dev  ## lint, format check and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(C_LIKE)
	@$(foreach package,$(LINTED),packaging/lint_native.sh $(BIN) $(package) &&) true

test: check  ## check, then every fast test
	$(BIN)/pytest -m "not slow" --durations 15

test-slow: $(VENV)/.dev  ## the slow tests alone
	$(BIN)/pytest -m slow --durations 15

test-all: check  ## check, then every test
	$(BIN)/pytest

# The word after `bench` is a goal to make: here it names the benchmark, and gets a rule that does nothing.
ifeq (bench,$(firstword $(MAKECMDGOALS)))
BENCHMARK := $(word 2,$(MAKECMDGOALS))
ifneq (,$(BENCHMARK))
.PHONY: $(BENCHMARK)
$(BENCHMARK): ; @:
endif
endif

bench: $(VENV)/.installed  ## measure it on this machine (make bench NAME ARGS="..."; make bench list)
	@$(BIN)/python -m benchmarks $(or $(BENCHMARK),serve) $(ARGS)

# What it needs is on a machine with a GPU already: torch, Triton, pytest. So it runs from the sources, with the Python of
# the environment where there is one. (`make bench gpu` names a benchmark.)
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
SOURCES := packages/emucxl/src:packages/tokenweave/src:packages/interlace/src
ifneq (bench,$(firstword $(MAKECMDGOALS)))
gpu:  ## measure what one GPU settles in minutes (ARGS=--dry-run tries it without one)
	@PYTHONPATH=$(SOURCES):$$PYTHONPATH $(GPU_PYTHON) -m benchmarks gpu $(ARGS)

gpu-quick:  ## the same in a minute, with few shapes
	@PYTHONPATH=$(SOURCES):$$PYTHONPATH $(GPU_PYTHON) -m benchmarks gpu --quick $(ARGS)
endif

format: $(VENV)/.dev  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(C_LIKE)

$(VENV)/.docs: $(VENV)/.dev
	$(BIN)/pip install --quiet --editable 'packages/interlace[docs]'
	@touch $@

docs: $(VENV)/.docs  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

pictures: $(VENV)/.installed  ## draw the documentation's pictures (make_timeline.py --record measures anew)
	$(BIN)/python docs/images/make_timeline.py
	$(BIN)/python docs/images/make_tiers.py

wheel:  ## build the three wheels into dist/, check them, and try each alone
	@packaging/wheels.sh $(PYTHON) '$(TORCH)'

install-c:  ## install the memory library for C programs (PREFIX=/usr/local, DESTDIR=)
	@command -v cmake > /dev/null || { echo "CMake 3.18 or newer is needed: install it, or pip install cmake"; exit 1; }
	cmake -S packages/emucxl -B $(BUILD_C) -DCMAKE_BUILD_TYPE=Release
	cmake --build $(BUILD_C) --target emucxl_c --parallel
	DESTDIR='$(DESTDIR)' cmake --install $(BUILD_C) --component c --prefix '$(abspath $(PREFIX))'
	@test -n '$(DESTDIR)' || ldconfig 2> /dev/null || true # as root; others set LD_LIBRARY_PATH

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist packages/*/build packages/*/src/*/*.so site .pytest_cache .mypy_cache .ruff_cache .hypothesis
