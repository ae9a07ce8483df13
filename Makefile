# Every target sets up .venv by itself, from nothing.
PYTHON ?= python3
RUN := .venv/bin/python
# The tests install libtpu, which complains where there is no accelerator.
ifeq ($(wildcard /dev/accel* /dev/vfio/* /dev/nvidia* /dev/dxg /dev/kfd),)
export JAX_PLATFORMS ?= cpu
endif

.PHONY: quickstart test test-peers test-slow lint bench bench-attention clean

quickstart: .venv/.ready  ## train five small models short, test them long, write runs/quickstart/report.html
	$(RUN) experiments/extrapolation.py --config configs/quickstart.py --out runs/quickstart

test: .venv/.dev  ## the tests (two processes)
	$(RUN) -m pytest

test-peers: .venv/.peers  ## the tests that compare with PyTorch and transformers
	$(RUN) -m pytest -m peers

test-slow: .venv/.dev  ## minutes: twenty kills while saving, twenty of two hosts
	$(RUN) -m pytest -m slow

lint: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

bench: .venv/.peers  ## speed beside a peer, in one alternating run
	$(RUN) benchmarks/train_step.py --out runs/train_step.json

bench-attention: .venv/.peers  ## ALiBi attention beside PyTorch's, 8 minutes
	mkdir -p runs
	$(RUN) benchmarks/attention.py --out runs/attention.json
	$(RUN) benchmarks/attention_plot.py runs/attention.json --out runs/attention.png

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

clean:
	rm -rf .venv runs corpora
