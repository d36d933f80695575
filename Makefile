# Deep Learning From Scratch: what one needs to build, test and change the book.
# Works with GNU make 3.81 (macOS) and later. `make help` lists the targets.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SITE := _build/html
PRESET ?= gpu
PORT ?= 8000

.DEFAULT_GOAL := help
.PHONY: help install book test serve gpu bench lint format lock picture clean distclean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' \
	    $(MAKEFILE_LIST)

install: $(INSTALLED) ## set up .venv, as every other target does by itself

book: $(INSTALLED) ## build the book, warnings as errors
	$(BIN)/jupyter-book build . -W --keep-going
	@printf '\nThe book is ready. Open it with your browser:\n  file://%s\n' \
	    "$(CURDIR)/$(SITE)/index.html"

test: $(INSTALLED) ## run all tests; those in a browser need Chromium
	$(BIN)/python -m pytest

serve: $(INSTALLED) ## live preview on http://127.0.0.1:8000, rebuilt on save
	@# sphinx-autobuild wants a conf.py. It is written from _config.yml
	@# before each build, and goes when the server does.
	@trap 'rm -f conf.py' EXIT; trap 'exit 0' INT TERM; \
	PYTHONPATH="$(CURDIR)/book/_ext" $(BIN)/sphinx-autobuild \
	    . _build/serve -d _build/.doctrees-serve --port $(PORT) \
	    --watch src \
	    --pre-build "$(BIN)/jupyter-book config sphinx ." \
	    --re-ignore '/(_build|tests|__pycache__|\.[^/]+)/' \
	    --re-ignore '/conf\.py$$' \
	    --re-ignore '(~|\.sw[px]|\.pyc)$$'

gpu: $(INSTALLED) ## run the GPU chapters and keep their outputs (PRESET=cpu)
	PYTHONPATH=book/_ext $(BIN)/python -m book_execution refresh \
	    --preset $(PRESET)

bench: $(INSTALLED) ## speed against other libraries
	@if ls tests/benchmarks/bench_*.py >/dev/null 2>&1; then \
	    $(BIN)/python -m pytest -s -o python_files='bench_*.py' \
	        tests/benchmarks; \
	else \
	    echo "There are no benchmarks yet: they are files" \
	        "tests/benchmarks/bench_*.py."; \
	fi

lint: $(INSTALLED) ## check the style of the code
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(INSTALLED) ## mend the style of the code, where a tool can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Fresh environment, nothing held back: what it ends with is the new lock.
# Local versions (torch's "+cpu") and the CUDA packages that torch itself
# pins belong to one machine and stay out.
lock: ## write constraints.txt from a fresh environment
	@$(find_python); \
	rm -rf _build/lock && mkdir -p _build/lock && \
	"$$python" -m venv _build/lock/venv && \
	grep -v '^-c' requirements.txt > _build/lock/requirements.txt && \
	_build/lock/venv/bin/python -m pip install \
	    -r _build/lock/requirements.txt && \
	_build/lock/venv/bin/python -m pip check && \
	_build/lock/venv/bin/python -m pip freeze --exclude-editable \
	    --exclude pip --exclude setuptools --exclude wheel \
	    > _build/lock/freeze.txt && \
	sed -e 's/+.*//' -e '/^nvidia-/d' -e '/^cuda-/d' -e '/^triton==/d' \
	    _build/lock/freeze.txt | LC_ALL=C sort -f > constraints.txt && \
	rm -rf _build/lock && echo "constraints.txt is written."

picture: $(INSTALLED) ## take the picture of a page that README.md shows
	$(BIN)/python .ci/picture.py

clean: ## remove all that was built, outputs of chapters included
	rm -rf _build .pytest_cache .ruff_cache .hypothesis conf.py
	find src tests book -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## the same, and the environment
	rm -rf $(VENV)

# Sets the shell variable `python` to an interpreter that the book runs on:
# $(PYTHON) where given, else the first that fits. A command that exists may
# still not run, so each is asked for its version.
define find_python
fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; \
python=''; \
for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
    if "$$candidate" -c "$$fits" >/dev/null 2>&1; then \
        python=$$candidate; break; \
    fi; \
done; \
if [ -z "$$python" ]; then \
    echo "make: the book needs Python 3.11, 3.12 or 3.13, and found none as" \
        "$(or $(PYTHON),python3 python3.13 python3.12 python3.11)." >&2; \
    echo "Install one, or say where it is:" \
        "make PYTHON=/path/to/python3.12 book" >&2; \
    exit 1; \
fi
endef

$(BIN)/python:
	@$(find_python); \
	echo "Creating $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV)

# The stamp holds what was installed, so that a file with a new date but the
# old content installs nothing.
$(INSTALLED): requirements.txt constraints.txt pyproject.toml | $(BIN)/python
	@cat requirements.txt constraints.txt pyproject.toml | cmp -s - $@ || { \
	    echo "Installing requirements.txt into $(VENV)" && \
	    $(BIN)/python -m pip install --quiet -r requirements.txt && \
	    $(BIN)/python -m pip check; \
	}
	@cat requirements.txt constraints.txt pyproject.toml > $@
