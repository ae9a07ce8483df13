# Every target sets up a virtual environment by itself, from nothing; `gpu` alone takes the machine's own Python as it is.
PYTHON ?= python3
RUN := .venv/bin/python
# The newest Python above the default one, of those on PATH or in ~/.pyenv; empty where there is none.
NEWEST := $(shell $(PYTHON) tests/newest_python.py)
NEWEST_READY := $(if $(NEWEST),.venv-newest/.dev)
# The oldest supported Python, as pyenv has it where it is not on PATH.
OLDEST ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.11.*/bin/python3.11) python3.11)
NO_NEWEST := @echo "Nothing was run: no Python newer than $(PYTHON) is on PATH or in ~/.pyenv."
# Otherwise each of many test processes compiles every file of the project again.
unexport PYTHONDONTWRITEBYTECODE
# The tests install libtpu, which complains where there is no accelerator.
ifeq ($(wildcard /dev/accel* /dev/vfio/* /dev/nvidia* /dev/dxg /dev/kfd),)
export JAX_PLATFORMS ?= cpu
# The quickstart's five models train one to a core (Linux): on two cores that is faster than all cores for one after the other.
MODELS_AT_ONCE := $(shell [ "$$(uname)" = Linux ] && nproc | awk '{ print $$1 < 5 ? $$1 : 5 }')
endif

.PHONY: quickstart environments test test-ids test-peers test-slow test-versions test-newest test-oldest lint bench bench-attention gpu gpu-compile tpu-schedule clean

quickstart: .venv/.ready  ## train five small models short, test them long, write runs/quickstart/report.html
	$(RUN) -m experiments.extrapolation --config configs/quickstart.py --out runs/quickstart --jobs $(or $(MODELS_AT_ONCE),1)

environments: .venv/.peers $(NEWEST_READY:dev=packages)  ## what CI installs, side by side with --jobs 2

test: .venv/.dev  ## the tests (two processes)
	$(RUN) -m pytest

test-ids: .venv/.dev  ## two collections of the tests, seconds apart and with different hashes, name the same tests
	$(RUN) tests/collect_twice.py

test-peers: .venv/.peers  ## the tests that compare with PyTorch and transformers; writes runs/parity.md
	$(RUN) -m pytest -n 0 -m 'not slow' --parity runs/parity tests/peers tests/test_families.py

test-slow: .venv/.dev  ## minutes: twenty kills while saving, twenty of two hosts
	$(RUN) -m pytest -m slow

test-versions: $(NEWEST_READY)  ## on the newest Python and packages, what breaks between versions
	$(if $(NEWEST),.venv-newest/bin/python -m pytest -m 'versions and not peers',$(NO_NEWEST))

test-newest: $(NEWEST_READY)  ## all tests on the newest Python and packages
	$(if $(NEWEST),.venv-newest/bin/python -m pytest,$(NO_NEWEST))

test-oldest: .venv-oldest/.dev  ## all tests on Python 3.11 with the lower bounds of requirements.txt
	.venv-oldest/bin/python -m pytest

lint: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

bench: .venv/.peers  ## speed beside a peer, in one alternating run
	$(RUN) -m benchmarks.train_step --out runs/train_step.json

bench-attention: .venv/.peers  ## ALiBi attention beside PyTorch's, 8 minutes
	mkdir -p runs
	$(RUN) -m benchmarks.attention --out runs/attention.json
	$(RUN) -m benchmarks.attention_plot runs/attention.json --out runs/attention.png

gpu:  ## on a machine with a GPU, 9 minutes: correctness, a step, speed; its own Python, installs nothing (INTERPRET=1: here)
	@$(PYTHON) -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('jax') is None)" || { echo "make gpu: got \
$(PYTHON) without jax, expected one that has it. Name it: make gpu PYTHON=..., which installs nothing."; exit 1; }
	$(PYTHON) -m benchmarks.gpu $(if $(INTERPRET),--interpret)

gpu-compile: .venv-gpu/.ready  ## registers, spills and shared memory of the kernels for GPUs; 5 minutes, needs no GPU
	.venv-gpu/bin/python -m benchmarks.gpu_compile

tpu-schedule: .venv/.dev  ## bundles of the kernels for TPUs by the compiler's own schedule; 15 minutes, needs no TPU
	$(RUN) -m benchmarks.tpu_schedule --plan

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.ready: .venv/bin/python requirements.txt pyproject.toml
	.venv/bin/pip install --quiet --editable .
	touch $@

.venv/.dev: .venv/.ready
	.venv/bin/pip install --quiet --editable '.[dev]'
	touch $@

.venv/.peers: .venv/.dev
	.venv/bin/pip install --quiet --editable '.[peers]'
	touch $@

# Apart from .venv, whose programs would otherwise load the plugin for CUDA.
.venv-gpu/.ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv --clear .venv-gpu
	.venv-gpu/bin/pip install --quiet --editable '.[gpu-compile]'
	touch $@

# Apart from the next step, as two installations of the project at once write into the same folder.
.venv-newest/.packages: requirements.txt
	$(NEWEST) -m venv --clear .venv-newest
	.venv-newest/bin/pip install --quiet --requirement requirements.txt
	touch $@

.venv-newest/.dev: .venv-newest/.packages pyproject.toml
	.venv-newest/bin/pip install --quiet --editable '.[dev]'
	touch $@

.venv-oldest/.dev: requirements.txt pyproject.toml
	$(OLDEST) -m venv --clear .venv-oldest
	sed -nE 's/^([A-Za-z0-9_-]+)(\[[a-z]+\])?>=([0-9.]+).*/\1==\3/p' requirements.txt > .venv-oldest/constraints.txt
	.venv-oldest/bin/pip install --quiet --constraint .venv-oldest/constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-newest .venv-oldest .venv-gpu runs corpora
