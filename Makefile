# `make demo` and `make test` are all a new machine needs: Python >= 3.11 and make.
# Every target runs in the project's own virtual environment, whatever is active outside.

FIND_PYTHON = for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& { command -v "$$p"; break; }; done
PYTHON ?= $(shell $(FIND_PYTHON))
BIN := .venv/bin
READY := .venv/.ready
DOCS_READY := .venv/.docs
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV PIP_REQUIRE_VIRTUALENV PIP_USER PIP_TARGET

.PHONY: demo test test-all check docs format clean
.DELETE_ON_ERROR:

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11, 3.12 or 3.13 on PATH (or make PYTHON=/path/to/python)"; exit 2; }
	"$(PYTHON)" -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[examples]" --group dev
	@touch $@

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	@touch $@

demo: $(READY)
	$(BIN)/python examples/train_lm.py --out runs/demo --overwrite

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow" --cov --cov-report=term

test-all: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup --cov --cov-report=term

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(DOCS_READY)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -d docs/_build/doctrees docs docs/_build/html
	$(BIN)/python docs/check_links.py docs/_build/html

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv
