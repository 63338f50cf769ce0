# make demo | test | test-all | lint | docs | notebooks | bench | clean. Each creates .venv and installs what it needs.
# Other interpreter or package index: make test PYTHON=python3.12 PIP_FLAGS="--extra-index-url ..."

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
PYTEST_FLAGS ?=
WORKERS ?= 2
BENCH_FLAGS ?=
STEP_FLAGS ?=
RUN := $(VENV)/bin/python
SHELL := /bin/bash

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-versions test-pythons lint docs notebooks bench clean

help:
	@echo "make demo   train, quantize and compare a small network on handwritten digits"
	@echo "make test   run the tests, but for those of tests/slow.txt"
	@echo "make test-all   run all tests and every example in the documentation, as continuous integration does"
	@echo "make lint   ruff, mypy, import layers"
	@echo "make docs   build the documentation into build/site; a warning is an error"
	@echo "make test-versions  the tests of the core and the callback with the oldest packages that lq allows"
	@echo "make test-pythons   the same tests on other Pythons, with the newest packages: PYTHONS=\"python3.10 python3.13\""
	@echo "make notebooks  run the notebooks and store their outputs"
	@echo "make bench  what training costs: step time, operations and memory, against float and torch.ao"
	@echo "make clean  remove caches, builds and runs; .venv stays"

# 8x8 images are too small to share between threads: one thread is the fastest.
demo: $(VENV)/.installed-demo
	OMP_NUM_THREADS=1 $(RUN) -m lq fit --config recipes/digits/qat.yaml

test: PYTEST_FLAGS += -m "not slow"
test test-all: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses $(WORKERS) --dist worksteal $(PYTEST_FLAGS)

# What pyproject.toml allows at least, on the oldest Python: OLDEST_PYTHON=python3.10. It installs 5 GB into build/oldest.
OLDEST_PYTHON ?= python3.10
OLDEST := torch==2.8.0 torchvision==0.23.0 lightning==2.4.0 scikit-learn pytest pytest-xdist hypothesis onnx onnxscript onnxruntime
VERSION_TESTS := tests/compat tests/core tests/config tests/conversion tests/instrument tests/callback/test_life.py tests/callback/test_resume.py \
	tests/callback/test_ddp.py tests/callback/test_sharded.py

test-versions:
	$(OLDEST_PYTHON) -m venv build/oldest
	build/oldest/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) $(OLDEST) -e .
	OMP_NUM_THREADS=1 build/oldest/bin/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(VERSION_TESTS)

# Each into an environment of its own, build/<name>, of 8 GB with all that the tests use.
PYTHONS ?= python3.10 python3.12 python3.13
test-pythons:
	@for python in $(PYTHONS); do \
		place=build/$$($$python -c 'import sys; print("python%d.%d" % sys.version_info[:2])'); \
		$(MAKE) --no-print-directory test-all PYTHON=$$python VENV=$$place PYTEST_FLAGS="$(VERSION_TESTS) tests/test_packaging.py $(PYTEST_FLAGS)" || exit 1; \
	done

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

# The variable keeps Material for MkDocs from advertising its successor.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet
	@echo "open build/site/index.html"

notebooks: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(RUN) notebooks/run.py

# On a GPU: make bench BENCH_FLAGS="--device cuda". With torch.compile (some minutes a model): STEP_FLAGS=--compile
bench: $(VENV)/.installed-dev
	$(RUN) -m benchmarks.step_time --json runs/bench/step_time.json $(BENCH_FLAGS) $(STEP_FLAGS)
	$(RUN) -m benchmarks.ops --json runs/bench/ops.json $(BENCH_FLAGS)
	$(RUN) -m benchmarks.memory --json runs/bench/memory.json $(BENCH_FLAGS)

clean:
	rm -rf build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find lq tests recipes benchmarks notebooks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "lq needs Python 3.10 or newer; name one: make PYTHON=/path/to/python3"; exit 1; }
	@if command -v uv >/dev/null; then uv venv --quiet --seed --python "$(PYTHON)" $(VENV); \
	else $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "install python3-venv (Debian, Ubuntu) or uv, then run make again"; exit 1; }; fi

# pip after a failing uv: uv does not read pip's configuration, such as a company's own index.
$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	@echo "installing lightning-qat[$*] into $(VENV) (the first time takes some minutes)"
	@if command -v uv >/dev/null && uv pip install --quiet --python $(RUN) $(PIP_FLAGS) -e '.[$*]'; then :; \
	else $(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -e '.[$*]'; fi
	@touch $@
