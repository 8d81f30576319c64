# Everything needs Python 3.11 or newer with pip, and make; the rest is installed into .venv.

PORT ?= 8000
JOBS ?= 2
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt --editable ".[all]" --requirement examples/quickstart/requirements.txt
PEERS := arq dramatiq saq streaq taskiq
INPUTS := pyproject.toml constraints.txt examples/quickstart/requirements.txt

.PHONY: help run test chaos endurance check bench peers services clean

help:
	@echo "make run [PORT=8000]   start the quickstart: API, worker and schedule, at http://127.0.0.1:PORT"
	@echo "make test [ARGS=...]   run the tests, two files at a time (JOBS=2); ARGS goes to pytest"
	@echo "make chaos [ARGS=...]  kill and cut what runs, for an hour, and count what was lost; ARGS=--help says more"
	@echo "make endurance         run 1,000,000 tasks over Redis, and print what memory and connections become; ARGS=--help says more"
	@echo "make check             format, lint, types, import floors"
	@echo "make bench [ARGS=...]  run the benchmarks"
	@echo "make peers             install what the benchmarks compare with, each into an environment of its own"
	@echo "make services          install the servers and the browser that some tests start (as root, on Debian and its kin)"

# exec: a signal to make's child must reach the supervisor, not a shell in between.
run: .venv/run.stamp
	@cd examples/quickstart && exec ../../$(BIN)/celeriac dev main:app --port $(PORT)

test: .venv/dev.stamp
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

chaos: .venv/dev.stamp
	$(BIN)/python -m tests.acceptance.chaos $(ARGS)

endurance: .venv/dev.stamp
	$(BIN)/python -m tests.acceptance.endurance $(or $(ARGS),redis --tasks 1000000)

check: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing
	cd examples/quickstart && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p worker -m main
	cd examples/quickstart && ../../$(BIN)/mypy --config-file ../../pyproject.toml tests
	cd examples/streaming && ../../$(BIN)/mypy --config-file ../../pyproject.toml -m main
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: .venv/dev.stamp peers
	$(BIN)/python -m benchmarks $(ARGS)

peers: $(PEERS:%=.venv-peers/%.stamp)

services:
	@sh .ci/services

clean:
	rm -rf .venv .venv-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# Debian's Python comes without ensurepip; its pip can install into a bare environment.
.venv/pip.stamp:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found." >&2; exit 1; }
	@echo "Creating .venv with $(PYTHON)"
	@$(PYTHON) -m venv .venv >/dev/null 2>&1 || { \
		$(PYTHON) -m venv --clear --without-pip .venv && \
		$(PYTHON) -m pip --disable-pip-version-check --python $(BIN)/python install --quiet pip; }
	@$(PIP) install --quiet --upgrade "pip>=25.1"
	@touch $@

.venv/run.stamp: .venv/pip.stamp $(INPUTS)
	@echo "Installing celeriac and the quickstart into .venv"
	@$(INSTALL)
	@touch $@

.venv/dev.stamp: .venv/run.stamp
	@echo "Installing the tools for tests, checks and benchmarks into .venv"
	@$(INSTALL) --group test --group check --group bench
	@touch $@

# One that cannot be installed is skipped by the benchmarks, which say so.
.venv-peers/%.stamp: .venv/pip.stamp pyproject.toml
	@echo "Installing $* into .venv-peers/$*"
	@test -x .venv-peers/$*/bin/python || $(BIN)/python -m venv --without-pip .venv-peers/$*
	@$(PIP) --python .venv-peers/$*/bin/python install --quiet --group peer-$* && touch $@ \
		|| echo "$* could not be installed: the benchmarks do without it." >&2
