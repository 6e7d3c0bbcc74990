# Every target makes .venv if there is none and installs what it needs into it.
PY      ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
NATIVE  := $(wildcard native/*) CMakeLists.txt pyproject.toml

.PHONY: quickstart test test-slow lint docs bench-quantize bench-merge-memory bench-nvfp4 build clean

$(VENV)/pip-tools:
	$(PY) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check "scikit-build-core>=0.11" "nanobind>=2.4" ninja
	command -v cmake >/dev/null || $(BIN)/pip install -q --disable-pip-version-check cmake
	touch $@

# An editable install; touched when the native sources change, so that `make test` never runs a stale core.
$(VENV)/installed: $(VENV)/pip-tools $(NATIVE)
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -e .
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation -e ".[test]"
	touch $@

$(VENV)/linted: $(VENV)/installed
	$(BIN)/pip install -q --disable-pip-version-check "ruff==0.17.5" "mypy>=1.11"
	touch $@

build: $(VENV)/installed

quickstart: $(VENV)/installed
	@sh examples/quickstart.sh

test: $(VENV)/tested
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow"

test-slow: $(VENV)/tested
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/linted
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# docs/cli.md, from what --help prints.
docs: $(VENV)/installed
	$(BIN)/python docs/make_cli.py

# LLAMA_QUANTIZE=path/to/llama-quantize puts its times beside ours.
bench-quantize: $(VENV)/installed
	$(BIN)/python bench/quantize.py $(ARGS)
	$(BIN)/python bench/quantize.py --imatrix $(ARGS)

bench-nvfp4: $(VENV)/installed
	$(BIN)/python bench/nvfp4.py $(ARGS)

bench-merge-memory: $(VENV)/installed
	$(BIN)/python bench/merge_memory.py $(ARGS)

clean:
	rm -rf build dist $(VENV)/installed $(VENV)/tested $(VENV)/linted
