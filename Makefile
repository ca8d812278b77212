# `make demo` and `make test` need Python >= 3.10 with venv, a C++20 compiler and make; each makes a
# virtual environment of its own in .venv and .venv-test. nvcc is used if it is there.
PYTHON ?= python3
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check -c constraints.txt
# pip builds in isolation; this makes the constraints hold there too.
export PIP_CONSTRAINT = constraints.txt
SOURCES = $(shell find csrc python -type f -not -name '*.so' -not -path '*/__pycache__/*') \
	CMakeLists.txt pyproject.toml constraints.txt
WERROR ?= OFF

.PHONY: demo test test-emulated test-integration test-ptx fuzz races nncodec lint format clean

demo: .venv/installed
	.venv/bin/resfed-codec demo

test: .venv-test/installed
	.venv-test/bin/python -m pytest $(PYTEST_FLAGS)

# The tests marked cuda, without a GPU: a build of its own, in which the CUDA sources are compiled as
# C++ and tests/emulator/ runs the kernels; those of kernels on some other devices, too
# (tests/emulator/cuda_runtime.h). Where there is a GPU, `make test` runs them on it.
EMULATED_DEVICES ?= zeros ones,blocks stale,at-once
test-emulated: .venv-test/installed build/emulated/installed
	PYTHONPATH=build/emulated/package .venv-test/bin/python -m pytest -m cuda $(PYTEST_FLAGS)
	set -e; for device in $(EMULATED_DEVICES); do \
		echo "RESFED_EMULATOR=$$device"; \
		RESFED_EMULATOR=$$device PYTHONPATH=build/emulated/package .venv-test/bin/python -m pytest \
			-m cuda tests/cuda/test_device_codec.py tests/cuda/test_cuda_refusals.py $(PYTEST_FLAGS); \
	done

build/emulated/installed: $(SOURCES) $(wildcard tests/emulator/*)
	rm -rf build/emulated/package
	CMAKE_ARGS= .venv-test/bin/python $(PIP_INSTALL) --no-deps --target build/emulated/package \
		--config-settings=build-dir=build/emulated/cmake \
		--config-settings=cmake.define.RESFED_CUDA=EMULATED \
		--config-settings=cmake.define.RESFED_WERROR=$(WERROR) .
	touch $@

# Flower's and NVFLARE's own engines, over loopback. They bring many packages, so they have an
# environment of their own; without it these tests are skipped in `make test`.
test-integration: .venv-integration/installed
	.venv-integration/bin/python -m pytest tests/integration $(PYTEST_FLAGS)

# The kernels as nvcc compiles them, in GPGPU-Sim; skipped, with a word, where something is missing.
# `make test-ptx SIMULATOR=CHECKOUT`: tests/ptx/__main__.py says of what. PTX_FLAGS=--cycles: time.
test-ptx:
	$(PYTHON) tests/ptx $(PTX_FLAGS) $(SIMULATOR)

# Sessions in Python, and libFuzzer on the native code, for so many seconds a target; the latter is
# skipped, with a word, without clang. CI has FUZZ_FLAGS="--runs N --faults": a fixed seed, and every
# allocation failing once.
FUZZ_SECONDS ?= 60
FUZZ_FLAGS ?= --seconds $(FUZZ_SECONDS)
fuzz: .venv-test/installed
	.venv-test/bin/python tests/fuzz $(FUZZ_FLAGS)

# Calls from several threads under the thread sanitizer; needs clang, too.
races:
	$(PYTHON) tests/fuzz --races

# Style, types and warnings; what CI asks for.
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

.venv/installed: $(SOURCES)
	test -d .venv || $(PYTHON) -m venv .venv
	.venv/bin/python $(PIP_INSTALL) '.[demo,cli]'
	touch $@

.venv-test/installed: $(SOURCES)
	test -d .venv-test || $(PYTHON) -m venv .venv-test
	.venv-test/bin/python $(PIP_INSTALL) --config-settings=cmake.define.RESFED_WERROR=$(WERROR) '.[test,dev,docs]'
	touch $@

.venv-integration/installed: $(SOURCES)
	test -d .venv-integration || $(PYTHON) -m venv .venv-integration
	.venv-integration/bin/python $(PIP_INSTALL) --config-settings=cmake.define.RESFED_WERROR=$(WERROR) \
		'.[flower,nvflare]' hypothesis pytest scikit-learn
	touch $@

# What is released: an sdist, a wheel made from it without CUDA, and that wheel where there is nothing
# but NumPy.
.PHONY: wheel-test docs
wheel-test: .venv-test/installed
	rm -rf build/wheel-test .venv-wheel
	CMAKE_ARGS= .venv-test/bin/python -m build --outdir build/wheel-test \
		--config-setting=cmake.define.RESFED_CUDA=OFF .
	.venv-test/bin/python tests/support/sdist.py build/wheel-test/*.tar.gz
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python $(PIP_INSTALL) build/wheel-test/*.whl
	.venv-wheel/bin/python tests/support/installed.py

# The pages, build/docs/index.html; a warning is an error, a link that leads nowhere is a warning.
docs: .venv-test/installed
	.venv-test/bin/python -m sphinx --fail-on-warning --keep-going --quiet -j 2 -c docs . build/docs

# NNCodec 2.1.3, for `python -m benchmarks` to compare with. Its own list of packages is long and wants
# an older NumPy (so Python 3.10 to 3.12); this installs what coding uses: torch, numpy, pandas,
# scikit-learn, opencv-python-headless, tqdm, nncodec. Nothing else needs this environment.
nncodec: .venv-nncodec/installed

.venv-nncodec/installed: benchmarks/peers/nncodec_requirements.txt
	test -d .venv-nncodec || $(PYTHON) -m venv .venv-nncodec
	PIP_CONSTRAINT= .venv-nncodec/bin/python -m pip install --quiet --disable-pip-version-check \
		--no-deps nncodec==2.1.3
	PIP_CONSTRAINT= .venv-nncodec/bin/python -m pip install --quiet --disable-pip-version-check \
		-r benchmarks/peers/nncodec_requirements.txt
	touch $@

clean:
	rm -rf build dist .venv .venv-test .venv-integration .venv-nncodec .venv-wheel
