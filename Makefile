# Python 3.11 to 3.13 and make are all that is needed. `make` alone says what there is.
#
# The environment is .venv, installed once from constraints.txt; everything after that works without a network.
# Another Python: make demo PYTHON=python3.12. Some of the tests: make test ARGS="tests/producers -x".

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test faults check format bench clean

help:
	@echo "make demo     real events through every door, every number checked (about two minutes)"
	@echo "make test     the tests, on a real Kafka broker and a real ClickHouse engine"
	@echo "make faults   an hour of faults under load, every number checked: MINUTES= SEED= EVENTS= (of a round) RATE= FAULTS= or QUICK=1"
	@echo "make check    linters, types, the architecture's rules, the built wheel"
	@echo "make format   format the code"
	@echo "make bench    this worker beside Faust, Quix Streams, Flink and others on this machine: RUNS= EVENTS= FACTS= ONLY= or QUICK=1"
	@echo "make clean    remove the environment and all caches of this folder"

demo: $(INSTALLED)
	@$(BIN)/python tests/demo/demo.py $(ARGS)

# Each of JOBS processes has a stack of its own; more than cores only make each other wait.
JOBS ?= 2
test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

# Two minutes with QUICK=1; otherwise the planted bugs first, which the harness must find, then MINUTES of rounds.
MINUTES ?= $(if $(QUICK),2,60)
EVENTS ?= $(if $(QUICK),60000,900000)
RATE ?= $(if $(QUICK),500,5000)
FAULTS ?= $(if $(QUICK),quick)
faults: $(INSTALLED)
	$(if $(QUICK),,$(BIN)/python -m pytest -q -m faults)
	$(BIN)/python tests/faults/run.py --minutes $(MINUTES) --events $(EVENTS) --rate $(RATE) \
		$(if $(SEED),--seed $(SEED)) $(if $(FAULTS),--faults $(FAULTS)) $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python tests/check_wheel.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The first run makes environments for Quix Streams and Flink under build/ (1 GB); without a network their rows say so.
# EVENTS counts here only when it is given: its default above is that of a round of faults.
bench: $(INSTALLED)
	$(BIN)/python tests/benchmarks/bench.py $(if $(QUICK),--quick) $(if $(RUNS),--runs $(RUNS)) $(if $(FACTS),--facts $(FACTS)) \
		$(if $(findstring command,$(origin EVENTS)),--events $(EVENTS)) $(if $(ONLY),--only $(ONLY)) $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# What a machine must have. Runs on any Python, so that an old one is told apart too.
define PREFLIGHT
import shutil, sys
found = "%d.%d" % sys.version_info[:2]
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit("Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) is %s. Name another: make PYTHON=python3.12" % found)
try:
    import ensurepip, venv
except ImportError:
    sys.exit("$(PYTHON) was installed without venv. On Debian and Ubuntu: apt install python3-venv "
             "(or python%s-venv), then run make again." % found)
import tempfile
for folder, wanted, why in ((".", 3.0, "the environment (1.4 GB) and the demo"), (tempfile.gettempdir(), 1.0, "downloads")):
    free = shutil.disk_usage(folder).free / 1e9
    if free < wanted:
        sys.exit("%s has %.1f GB free; %s need %.0f GB. Make room, then run make again." % (folder, free, why, wanted))
endef
export PREFLIGHT

# The build backend first and from the same list, so that nothing is fetched beside it.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
		{ echo "there is no $(PYTHON); install Python 3.11 to 3.13, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c "$$PREFLIGHT"
	@echo "Installing into $(VENV): about 470 MB to download, 1.7 GB on disk, some minutes. Once only."
	@$(PYTHON) -m venv $(VENV)
	@{ $(PIP) install --quiet --retries 3 -c constraints.txt hatchling && \
		$(PIP) install --quiet --retries 3 -c constraints.txt --no-build-isolation -e '.[test]'; } || \
		{ echo "The packages could not be installed; pip's message is above. Without a network, connect it (or set" \
			"HTTPS_PROXY or PIP_INDEX_URL), then run make again: it goes on where it stopped." >&2; exit 1; }
	@touch $@
