# Needs Python 3.11 or newer with pip, and make. With uv on PATH the set-up is several times as fast; only `make lock` needs it.
#   make demo VENV=/elsewhere PYTHON=python3.13

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# A stamp carries what the set-up depends on, so it goes stale by content and not by time.
KEY := $(shell cat requirements/run.txt requirements/test.txt pyproject.toml src/openmae/version.py | cksum | cut -d ' ' -f 1)
RUN_STAMP := $(VENV)/.run-$(KEY)
TEST_STAMP := $(VENV)/.test-$(KEY)

PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(BIN)/python tools/install.py
INSTALL_PROJECT := $(PIP) install --quiet --no-index --no-build-isolation --no-deps --editable .
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	--no-emit-index-url --custom-compile-command "make lock"

# Tests start many interpreters: where the user's settings say that none may write bytecode, each would compile openmae again.
test long: export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test long check drill lock clean

help:
	@echo "make demo    set up $(VENV) and run openmae demo (a few minutes on a laptop)"
	@echo "make test    set up $(VENV) with the test tools, then make check and the quick tests"
	@echo "make long    the tests that take longer: kills, several processes, compilers, every part of the GPU check"
	@echo "make check   ruff, mypy and import-linter"
	@echo "make drill   kill, damage and starve real runs for ten minutes, count what holds (QUICK=--quick: three)"
	@echo "make lock    compile requirements/*.txt again from pyproject.toml (needs uv)"
	@echo "make clean   remove $(VENV) and everything built or cached"

demo: $(RUN_STAMP)
	$(BIN)/openmae demo

test: check
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 8 --dist worksteal

long: $(TEST_STAMP)
	$(BIN)/python -m pytest -m slow

check: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

drill: $(TEST_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tools/drill.py $(QUICK)

# test.txt holds all of run.txt at the same versions, so a venv set up for tests also runs the demo. Old stamps go first:
# a set-up that is interrupted, or that is made for another commit, leaves none behind.
$(RUN_STAMP):
	@$(MAKE) --silent --no-print-directory $(BIN)/pip
	@rm -f $(VENV)/.run-* $(VENV)/.test-*
	@$(INSTALL) requirements/run.txt
	$(INSTALL_PROJECT)
	@touch $@

$(TEST_STAMP):
	@$(MAKE) --silent --no-print-directory $(BIN)/pip
	@rm -f $(VENV)/.run-* $(VENV)/.test-*
	@$(INSTALL) requirements/test.txt
	$(INSTALL_PROJECT)
	@touch $(RUN_STAMP) $@

# pip is the last thing that venv writes: where it is missing, the venv is missing or was interrupted.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "openmae needs Python 3.11 or newer," \
		"and $(PYTHON) is $$($(PYTHON) --version 2>&1). Name a newer one: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# run.txt is compiled under test.txt as a constraint: the same package has the same version in both.
# Add UPGRADE=--upgrade to move to the newest versions; without it, what is pinned stays pinned where it can.
lock:
	$(COMPILE) $(UPGRADE) pyproject.toml --group build --group test --output-file requirements/test.txt
	$(COMPILE) $(UPGRADE) pyproject.toml --group build --constraint requirements/test.txt --output-file requirements/run.txt

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -exec rm -rf {} +
