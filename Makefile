# make demo and make test need nothing but Python 3.11 to 3.13 with venv, and a way to a package index.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
VENV := .venv
STAMP := $(VENV)/.made-by-make
# the first Python that fits; `make PYTHON=/path/to/python3.12 venv` takes another
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3 python; do \
	"$$name" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
	&& { command -v "$$name"; break; }; done)

.PHONY: help demo test bench venv peers
help:
	@echo 'make demo   the whole job on toy data: shard, inspect, train, eval, predict; results in runs/demo/'
	@echo 'make test   every gate: format, lint, types, imports, tests (ARGS="-k name" goes to pytest)'
	@echo 'make bench  our speed beside others, one line a bar (no GPU; 15 minutes on 2 idle cores; ARGS="--only C1,C5")'
	@echo 'make peers  .peers/: the packages that make bench compares with, apart from $(VENV)/'
	@echo 'make venv   $(VENV)/ with the versions of constraints.txt; made again when they or pyproject.toml change'

demo: $(STAMP)
	$(VENV)/bin/unetfast demo

test: $(STAMP)
	$(VENV)/bin/python tools/check.py $(ARGS)

bench: $(STAMP) .peers/.made-by-make
	$(VENV)/bin/python benchmarks/bars.py $(ARGS)

venv: $(STAMP)

peers: .peers/.made-by-make

# packages to compare with; they stand apart, and never in $(VENV)
.peers/.made-by-make: benchmarks/peers.txt benchmarks/ffcv.txt | $(STAMP)
	rm -rf .peers
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --target .peers -r benchmarks/peers.txt
	@if pkg-config --exists opencv4 libturbojpeg 2>/dev/null; then \
		echo "building ffcv"; \
		$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target .peers -r benchmarks/ffcv.txt; \
	else echo "ffcv is left out: pkg-config finds no opencv4 and libturbojpeg (see benchmarks/ffcv.txt)"; fi
	@touch $@

# the extra dali holds a marker: it installs nothing but on Linux (x86-64, aarch64)
$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "error: no Python 3.11, 3.12 or 3.13 on the PATH (with its venv module: on Debian and Ubuntu, apt install python3-venv)" >&2; \
		echo "  install one, or name one: make PYTHON=/path/to/python3.12 venv" >&2; exit 2; fi
	"$(PYTHON)" -m venv $(VENV)
	@echo "installing PyTorch and the rest into $(VENV): about 8 GB on Linux, some minutes"
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,export,backbones,watch,notebook,numba,dali]'
	@touch $(STAMP)
