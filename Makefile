# One way to do each thing. `make demo` and `make test` need nothing but a Debian-like machine with
# Python 3.11 and a C++ compiler; both make .venv from constraints.txt first.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
TESTS ?=
export OMP_WAIT_POLICY = PASSIVE
export TOKENIZERS_PARALLELISM = false

EXAMPLES := tiny tiny-int4 icd-small icd-triage icd-triage-int4
QUANTISED := full-evaluation full-score quantise
NODES := base base-evaluation dataset evaluation gate merge-1 package score train-1
KERNELS := kolm_build/numerics/libkolm_portable.so
DECODER := kolm_build/numerics/libkolm_decoder.so
KERNEL_SOURCES := CMakeLists.txt tools/build_kernels.py $(shell find kolm_build/numerics/csrc -type f)

.PHONY: help kernels demo test check lint types contracts vectors spec readme pytest quick storm kill-training bench conformance exhaustive lockfiles outputs algorithms federated learning portability portability-emulated dev format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.demo ## build, verify and rebuild the example model, from nothing
	@$(BIN)/python tools/demo.py

test: check ## prove the code: lint, types, contracts, vectors, spec, README, every test

check: lint types contracts vectors spec readme pytest ## the same, by its longer name

lint: $(VENV)/.dev ## formatting, lint, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell

types: $(VENV)/.dev ## mypy --strict, of the product and of tools
	$(BIN)/mypy

contracts: $(VENV)/.dev ## imports point down only
	$(BIN)/lint-imports

vectors: $(VENV)/.dev ## the golden vectors are what the code makes
	$(BIN)/python tools/make_vectors.py --check

spec: $(VENV)/.dev ## every MUST of the spec has a test, or a reason
	$(BIN)/python tools/spec_coverage.py

readme: $(VENV)/.dev ## the help texts in the docs are the program's
	$(BIN)/python tools/check_readme.py

pytest: $(VENV)/.dev ## every test; TESTS=tests/core narrows
	$(BIN)/python -m pytest -n 2 --dist loadgroup -q $(TESTS)

quick: $(VENV)/.dev ## the tests that train nothing
	$(BIN)/python -m pytest -n 2 -q -m 'not ml' $(TESTS)

storm: $(VENV)/.dev ## 500 kills and 20 power cuts against the store (needs root for the latter)
	$(BIN)/python tools/storm.py

kill-training: $(VENV)/.demo ## 20 kills in the middle of a training; each goes on to the same bytes (KILLS=5 for fewer)
	$(BIN)/python tools/kill_training.py --kills $(or $(KILLS),20)

bench: $(VENV)/.dev ## ratios against nix and dvc (needs nix-bin); docs/performance.md
	$(BIN)/python tools/bench_store.py
	$(BIN)/python tools/bench_noop.py
	$(BIN)/python tools/bench_pack.py
	$(BIN)/python tools/bench_verify.py
	$(BIN)/python tools/bench_copy.py
	$(BIN)/python tools/bench_sandbox.py

conformance: $(VENV)/.dev ## every kernel's hashes: GCC, Clang, -O1, -O3, every instruction set, aarch64 emulated; mutants
	$(BIN)/python tools/conformance.py

exhaustive: ## every function at all 2^32 inputs against MPFR (needs libmpfr-dev; about half an hour)
	cmake -S . -B build/exhaustive -G Ninja -DKOLM_TORCH=OFF -DKOLM_TESTING=OFF -DKOLM_EXHAUSTIVE=ON
	cmake --build build/exhaustive --target exhaustive
	build/exhaustive/exhaustive $(FUNCTIONS)

lockfiles: $(VENV)/.demo ## lock the examples anew, after a change to a step, a kernel or the environment
	for name in $(EXAMPLES); do \
	  $(BIN)/kolm lock -C examples/$$name --lock lockfiles/$$name.lock --update environment --update code || exit; \
	done

outputs: $(VENV)/.demo ## build the examples from their locks and note what they are, in lockfiles/*.outputs
	for name in $(EXAMPLES); do \
	  rm -f lockfiles/$$name.outputs; \
	  nodes="$(NODES)"; [[ $$name != *-int4 ]] || nodes+=" $(QUANTISED)"; \
	  $(BIN)/kolm build -C examples/$$name --lock lockfiles/$$name.lock --no-sign --record $$nodes || exit; \
	done

kernels: $(KERNELS) ## compile the portable kernels, where a source changed

federated: $(VENV)/.dev ## every federated method twice; bytes compared (WRITE=--write notes them)
	$(BIN)/python tools/federated.py $(WRITE)

algorithms: $(VENV)/.dev ## every algorithm of the catalogue twice; bytes compared (WRITE=--write notes them)
	$(BIN)/python tools/algorithms.py $(WRITE)

learning: $(VENV)/.dev ## models of several families beat their baselines on held-out rows (WRITE=--write notes it)
	$(BIN)/python tools/learning.py $(WRITE)

portability: $(VENV)/.dev ## one table: models trained in every setting, one digest a row
	$(BIN)/python tools/portability.py

portability-emulated: $(VENV)/.dev $(KERNELS) ## the same on emulated machines: aarch64 with another torch, an Intel of 2013 (needs qemu)
	$(BIN)/python tools/portability_emulated.py --write docs/portability-emulated.json

dev: $(VENV)/.dev ## .venv with everything a developer needs

format: $(VENV)/.dev ## ruff format, ruff --fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## build products; never store/
	rm -rf $(VENV) $(KERNELS) $(DECODER) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo 'Python 3.11 is needed. Debian 12: apt install python3 python3-venv. Or: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || \
	  { echo 'Python has no ensurepip. Debian: apt install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	@touch $@

$(VENV)/.compiler: $(VENV)/.python
	@command -v c++ > /dev/null || { echo 'A C++ compiler is needed. Debian: apt install g++' >&2; exit 1; }
	@touch $@

# torch first and no isolated build, so that it is downloaded once.
$(VENV)/.installed: $(VENV)/.compiler pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt hatchling cmake ninja torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[steps,run,sandbox]'
	@touch $@

$(KERNELS): $(VENV)/.installed $(KERNEL_SOURCES)
	$(BIN)/python tools/build_kernels.py
	@touch $@

$(VENV)/.demo: $(VENV)/.installed $(KERNELS)
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev
	@touch $@
