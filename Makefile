# `make demo` and `make test` need Python >= 3.10 with venv, a C++20 compiler and make. They create
# the virtual environments .venv and .venv-test.
PYTHON ?= python3
PIP_INSTALL = -m pip install -qq --disable-pip-version-check -c constraints.txt
# Applies the constraints to pip's isolated builds, too.
export PIP_CONSTRAINT = constraints.txt
SOURCES = $(shell find csrc python -type f -not -name '*.so' -not -path '*/__pycache__/*') \
	CMakeLists.txt pyproject.toml constraints.txt
WERROR ?= OFF
# The CUDA part doubles the time of the build. By default it is built only on a machine with a GPU
# and nvcc; `make demo RESFED_CUDA=ON` builds it without a GPU, too.
RESFED_CUDA ?= $(shell nvidia-smi -L 2> /dev/null | grep -q ^GPU && echo AUTO || echo OFF)
BUILD_SETTINGS = --config-settings=cmake.define.RESFED_CUDA=$(RESFED_CUDA) \
	--config-settings=cmake.define.RESFED_WERROR=$(WERROR)

.PHONY: demo test test-all test-emulated test-integration test-ptx fuzz races nncodec lint format clean

demo: .venv/installed
	@echo "Training ten clients with the codec and without, about 10 seconds."
	@.venv/bin/resfed-codec demo

# All tests except those marked slow. CI runs test-all.
test: .venv-test/installed
	@echo "Running the tests except the slow ones, several minutes (make test-all: all tests)."
	@.venv-test/bin/python -m pytest -m "not slow" $(PYTEST_FLAGS)

test-all: .venv-test/installed
	@.venv-test/bin/python -m pytest $(PYTEST_FLAGS)

# The tests marked cuda, without a GPU: a separate build compiles the CUDA sources as C++, and
# tests/emulator/ runs the kernels. The tests of kernels run on several emulated devices
# (tests/emulator/cuda_runtime.h). On a machine with a GPU, `make test` runs these tests on it.
EMULATED_DEVICES ?= zeros ones,blocks stale,at-once
test-emulated: .venv-test/installed build/emulated/installed
	PYTHONPATH=build/emulated/package .venv-test/bin/python -m pytest -m cuda $(PYTEST_FLAGS)
	set -e; for device in $(EMULATED_DEVICES); do \
		echo "RESFED_EMULATOR=$$device"; \
		RESFED_EMULATOR=$$device PYTHONPATH=build/emulated/package .venv-test/bin/python -m pytest \
			-m cuda tests/cuda/test_device_aggregate.py \
			tests/cuda/test_device_codec.py tests/cuda/test_device_levels.py \
			tests/cuda/test_device_lossless.py tests/cuda/test_device_norm.py \
			tests/cuda/test_device_search.py \
			tests/cuda/test_cuda_errors.py $(PYTEST_FLAGS); \
	done

build/emulated/installed: $(SOURCES) $(wildcard tests/emulator/*)
	rm -rf build/emulated/package
	CMAKE_ARGS= .venv-test/bin/python $(PIP_INSTALL) --no-deps --target build/emulated/package \
		--config-settings=build-dir=build/emulated/cmake \
		--config-settings=cmake.define.RESFED_CUDA=EMULATED \
		--config-settings=cmake.define.RESFED_WERROR=$(WERROR) .
	touch $@

# Runs the integrations in Flower's and NVFLARE's own engines, over loopback, and on models of JAX and
# Keras. The frameworks install many packages, so they have their own environment. `make test` skips
# these tests.
test-integration: .venv-integration/installed
	.venv-integration/bin/python -m pytest tests/integration $(PYTEST_FLAGS)

# Runs the kernels as nvcc compiles them, in GPGPU-Sim; skipped with a message if a tool is missing.
# `make test-ptx SIMULATOR=CHECKOUT`: see tests/ptx/__main__.py. PTX_FLAGS=--cycles counts cycles.
test-ptx:
	$(PYTHON) tests/ptx $(PTX_FLAGS) $(SIMULATOR)

# Fuzzes sessions in Python, and the native code with libFuzzer, FUZZ_SECONDS for each target. Skips
# the native code with a message if clang is missing. CI sets FUZZ_FLAGS="--runs N --faults": a
# fixed seed, and every allocation fails once.
FUZZ_SECONDS ?= 60
FUZZ_FLAGS ?= --seconds $(FUZZ_SECONDS)
fuzz: .venv-test/installed
	.venv-test/bin/python tests/fuzz $(FUZZ_FLAGS)

# Calls the native code from several threads under the thread sanitizer; needs clang.
races:
	$(PYTHON) tests/fuzz --races

# Checks style, types and warnings, as CI does.
lint: .venv-test/installed
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	find csrc tests -name '*.?pp' -o -name '*.cu' | xargs .venv-test/bin/clang-format --dry-run -Werror
	.venv-test/bin/mypy
	.venv-test/bin/python -m mypy.stubtest resfed_codec._native --allowlist tests/native/stub_allowlist.txt

format: .venv-test/installed
	.venv-test/bin/ruff check --fix .
	.venv-test/bin/ruff format .
	find csrc tests -name '*.?pp' -o -name '*.cu' | xargs .venv-test/bin/clang-format -i

# --no-compile: compiling all of SciPy and Matplotlib to bytecode takes longer than the demo.
.venv/installed: $(SOURCES)
	@echo "Building the package and installing what the demo needs in .venv, about two minutes."
	@test -d .venv || $(PYTHON) -m venv .venv
	@.venv/bin/python $(PIP_INSTALL) --no-compile $(BUILD_SETTINGS) '.[demo,cli]'
	@touch $@

.venv-test/installed: $(SOURCES)
	@echo "Building the package and installing test tools in .venv-test, several minutes."
	@test -d .venv-test || $(PYTHON) -m venv .venv-test
	@.venv-test/bin/python $(PIP_INSTALL) $(BUILD_SETTINGS) '.[test,dev,docs]'
	@touch $@

.venv-integration/installed: $(SOURCES)
	@test -d .venv-integration || $(PYTHON) -m venv .venv-integration
	@.venv-integration/bin/python $(PIP_INSTALL) $(BUILD_SETTINGS) \
		'.[flower,nvflare]' 'flwr[simulation]' flax hypothesis jax keras pytest scikit-learn
	@touch $@

# Builds the release: an sdist and, from it, a wheel without CUDA. Tests the wheel in an environment
# with only NumPy.
.PHONY: wheel-test docs
wheel-test: .venv-test/installed
	rm -rf build/wheel-test .venv-wheel
	CMAKE_ARGS= .venv-test/bin/python -m build --outdir build/wheel-test \
		--config-setting=cmake.define.RESFED_CUDA=OFF .
	.venv-test/bin/python tests/support/sdist.py build/wheel-test/*.tar.gz
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python $(PIP_INSTALL) build/wheel-test/*.whl
	.venv-wheel/bin/python tests/support/installed.py

# Builds the documentation, build/docs/index.html. Warnings, such as broken links, are errors.
docs: .venv-test/installed
	.venv-test/bin/python -m sphinx --fail-on-warning --keep-going --quiet -j 2 -c docs . build/docs

# Installs NNCodec 2.1.3, a peer of `python -m benchmarks`. It requires an older NumPy (so Python
# 3.10 to 3.12) and many packages. This installs only those that coding uses: torch, numpy, pandas,
# scikit-learn, opencv-python-headless, tqdm, nncodec.
nncodec: .venv-nncodec/installed

.venv-nncodec/installed: benchmarks/peers/nncodec_requirements.txt
	test -d .venv-nncodec || $(PYTHON) -m venv .venv-nncodec
	PIP_CONSTRAINT= .venv-nncodec/bin/python -m pip install -qq --disable-pip-version-check \
		--no-deps nncodec==2.1.3
	PIP_CONSTRAINT= .venv-nncodec/bin/python -m pip install -qq --disable-pip-version-check \
		-r benchmarks/peers/nncodec_requirements.txt
	touch $@

clean:
	rm -rf build dist .venv .venv-test .venv-integration .venv-nncodec .venv-wheel
