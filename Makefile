# make demo | test | check | fuzz: each sets up what it needs below .venv on the first call.
# Needs Python 3.11, git and make; no root, no docker, nothing running.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
# Processes of one thread each: two run the service and wait half of their time. See tests/sharing.py.
ONE_THREAD := OMP_NUM_THREADS=1
THREE_AT_A_TIME := -n 3 --no-loadscope-reorder
# Whatever the caller has set: every process of the tests, and each that it starts, would compile the same files again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test check fast-tests fuzz format lock clean

demo: $(INSTALLED)
	@$(BIN)/bpt demo

test: $(INSTALLED)
	@$(ONE_THREAD) $(BIN)/pytest $(THREE_AT_A_TIME)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(BIN)/python -m tests.advisories
	@$(MAKE) --no-print-directory fast-tests

fast-tests: $(INSTALLED)
	@$(ONE_THREAD) $(BIN)/pytest $(THREE_AT_A_TIME) -m "not slow"

# Requests made up from the OpenAPI, for so long.
MINUTES ?= 10
fuzz: $(INSTALLED)
	@$(ONE_THREAD) $(BIN)/python -m tests.fuzz --minutes $(MINUTES)

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The newest releases that pyproject.toml admits become the ones that everybody installs.
lock:
	rm -rf .venv && $(PYTHON) -m venv .venv && $(BIN)/pip install --quiet --editable '.[server,dev]'
	$(BIN)/pip freeze --exclude-editable > constraints.txt
	touch $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@echo "setting up .venv (the first time this downloads some 3 GB, mostly torch)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[server,dev]'
	@touch $(INSTALLED)

clean:
	rm -rf .venv .demo build *.egg-info
