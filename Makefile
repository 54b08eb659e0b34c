# Each target does its own set-up, once, in $(VENV). Whatever environment is active is left alone.

VENV ?= .venv
PYTHON ?= python3
# A pip constraints file, for pinned versions: `make test CONSTRAINTS=constraints.txt`.
CONSTRAINTS ?=
# An environment without the pins is installed again with them.
PINS := $(if $(CONSTRAINTS),-$(notdir $(CONSTRAINTS)))
# The user's own arguments, for `make train` and `make test`.
ARGS ?=
# Processes of `make train`, one for each GPU. One is enough for the digits, on a machine of any size.
PROCESSES ?= 1

# Tests at a time: one more than two cores, because many tests wait for other processes.
JOBS ?= 3

BIN := $(VENV)/bin
CORES := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1)
# The linter alone needs neither PyTorch nor the package. Its pin is in setup.py.
RUFF := $(shell sed -n 's/.*"\(ruff==[^"]*\)".*/\1/p' setup.py)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONHOME
# What runs is this checkout, even if a `pip install .` has put a copy into $(VENV).
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help train test test-fast docs quality style

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "make train and the tests take ARGS=\"...\", for example make test ARGS=\"-k losses\"."

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed, and this is " + sys.version.split()[0] + ". Name another with make PYTHON=...")'
	@$(PYTHON) -c 'import ensurepip' || { echo "Python's venv module is incomplete; on Debian and Ubuntu, install the package python3-venv." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The package itself is on the list for its version. -qq hides pip's warnings, not its errors.
$(VENV)/.installed-%$(PINS): setup.py hf_gradaug/__init__.py $(CONSTRAINTS) | $(BIN)/python
	@echo "Installing hf_gradaug[$*] into $(VENV); the first time this downloads PyTorch and takes minutes."
	@$(BIN)/python -m pip install -qq $(addprefix -c ,$(CONSTRAINTS)) -e ".[$*]"
	@touch $@

$(VENV)/.installed-ruff: setup.py | $(BIN)/python
	@$(BIN)/python -m pip install -qq "$(RUFF)"
	@touch $@

# With one process, one GPU is left visible, because Trainer would otherwise split batches over all (nn.DataParallel), and
# there is no launcher: Accelerate's would end at a signal and leave the run alone. Make waits for its checkpoint.
# The settings are spelled out, because `accelerate launch` warns about each that it has to choose itself, and would
# give work on CPUs a single thread.
ifeq ($(PROCESSES),1)
LAUNCH := $(BIN)/python
else
LAUNCH := $(BIN)/accelerate launch --multi_gpu --num_machines 1 --num_processes $(PROCESSES) --mixed_precision no \
	--dynamo_backend no --num_cpu_threads_per_process $(shell expr $(CORES) / $(PROCESSES) \| 1)
endif

train: $(VENV)/.installed-examples$(PINS)  ## Train with GradAug on the embedded digits, results in outputs/digits
	@gpus="$${CUDA_VISIBLE_DEVICES-0}"; \
	if [ "$(PROCESSES)" = 1 ]; then export CUDA_VISIBLE_DEVICES="$${gpus%%,*}"; fi; \
	set -x; \
	exec $(LAUNCH) examples/run_image_classification.py --gradaug --output_dir outputs/digits --do_train --do_eval $(ARGS)

# pytest exits with 5 when it ran no test, which fails the target.
# A file's tests share what it trained, so that one process runs them; in their order, because long tests
# (benchmarks, distributed, examples, faults) come first.
PYTEST = $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --durations=20

test-fast: $(VENV)/.installed-dev$(PINS)  ## Run the fast tests
	@$(PYTEST) -m "not slow and not distributed" $(ARGS)

test: $(VENV)/.installed-dev$(PINS)  ## Run all tests
	@$(PYTEST) $(ARGS)

# Without the variable, mkdocs-material prints an advertisement.
docs: $(VENV)/.installed-docs$(PINS)  ## Build the site of the documentation in site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

quality: $(VENV)/.installed-ruff  ## Check style, without changing a file
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

style: $(VENV)/.installed-ruff  ## Mend style where the tool can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
