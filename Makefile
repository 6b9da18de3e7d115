# `make demo` and `make test` are all a new machine needs: Python >= 3.11 and make.
# Every target runs in the project's own virtual environment, whatever is active outside.

FIND_PYTHON = for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null \
	&& { command -v "$$p"; break; }; done
PYTHON ?= $(shell $(FIND_PYTHON))
BIN := .venv/bin
UV := $(BIN)/uv
DEMO_READY := .venv/.demo
READY := .venv/.ready
CORE := test_messages.py test_public.py polar/test_schedules.py polar/test_minimax.py polar/test_newton_schulz.py polar/test_properties.py transforms/test_momentum_rms.py transforms/test_scale.py transforms/test_scale_by_muon.py
DOCS_READY := .venv/.docs
TPU_READY := .venv/.tpu
TPU_MARK = tpu and not slow
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV PIP_REQUIRE_VIRTUALENV PIP_USER PIP_TARGET

.PHONY: demo test test-all test-tpu test-oldest test-newest test-wheel audit accelerators check docs notebooks format clean
.DELETE_ON_ERROR:

# Bytecode of modules that the demo never imports would be a seventh of its environment.
$(DEMO_READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11 to 3.14 on PATH (or make PYTHON=/path/to/python)"; exit 2; }
	"$(PYTHON)" -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1" setuptools
	$(BIN)/python -m pip install --quiet --no-compile --editable . --group demo
	@touch $@

$(READY): $(DEMO_READY)
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --group docs
	@touch $@

# Nothing is installed where libtpu has no wheel; the tests then say so and are skipped.
$(TPU_READY): $(READY)
	$(BIN)/python -m pip install --quiet --group tpu
	@touch $@

demo: $(DEMO_READY)
	$(BIN)/python -m trainer demo --overwrite

# Stealing leaves neighbouring tests to one worker, so that they share what they compile.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not tpu" --cov --cov-report=term

# Programs compiled for TPUs, which needs none.
test-tpu: $(TPU_READY)
	$(BIN)/python -m pytest -n 2 -m "$(TPU_MARK)" tests/tpu

test-all: $(READY)
	HYPOTHESIS_MAX_EXAMPLES=$${HYPOTHESIS_MAX_EXAMPLES:-30} $(BIN)/python -m pytest -n 2 --dist worksteal -m "not tpu" --cov --cov-report=term
	$(MAKE) test-tpu TPU_MARK=tpu
	$(MAKE) test-wheel test-oldest test-newest

# The ends of what pyproject.toml promises, each in an environment of its own under build/. Where
# its Python is missing, a target says so and passes.
test-oldest: VERSION = 3.11
test-oldest: RESOLUTION = lowest-direct
test-newest: VERSION = 3.14 3.13
test-newest: RESOLUTION = highest
INTERPRETER = $(shell for v in $(VERSION); do for p in python$$v $(HOME)/.pyenv/versions/$$v.*/bin/python; do \
	"$$p" -c "" 2>/dev/null && { command -v "$$p"; break 2; }; done; done)

test-oldest test-newest: test-%: $(READY)
	@test -n "$(INTERPRETER)" || { echo "$@: skipped, for there is no Python of $(VERSION)"; exit 0; }; \
	set -ex; \
	$(UV) venv --quiet --clear --python "$(INTERPRETER)" build/$*; \
	$(UV) pip install --quiet --python build/$* --resolution $(RESOLUTION) --editable . --group test; \
	$(UV) pip check --python build/$*; \
	build/$*/bin/python -m pytest -n 2 --dist worksteal -m "not slow and not tpu"

# The wheel without extras, as a user installs it, and the tests that need no more, away from here.
test-wheel: $(READY)
	rm -rf build/wheel
	$(UV) build --quiet --wheel --out-dir build/wheel
	$(UV) venv --quiet --python $(BIN)/python build/wheel/env
	$(UV) pip install --quiet --python build/wheel/env build/wheel/*.whl pytest hypothesis
	$(UV) pip check --python build/wheel/env
	cp -R tests pyproject.toml CHANGELOG.md build/wheel
	cd build/wheel && env/bin/pytest $(CORE:%=tests/%) -k "not docstrings_run[muon_jax.clip._flax]"

# Known vulnerabilities of what is installed. Needs https://pypi.org/pypi/…/json, where they are.
audit: $(READY)
	mkdir -p build
	$(UV) pip freeze --python .venv --exclude-editable > build/installed.txt
	$(UV) tool run pip-audit --strict --no-deps --disable-pip --requirement build/installed.txt

# What compilers for TPUs and GPUs make of a step: docs/reference/accelerators.md. Takes an hour, and
# goes on where it stopped.
accelerators: $(TPU_READY)
	$(BIN)/python -m benchmarks.accelerators --write

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(DOCS_READY)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -d docs/_build/doctrees docs docs/_build/html
	$(BIN)/python docs/check_links.py docs/_build/html

# Executes the text of every notebook and writes it with its outputs beside it, which the site shows.
notebooks: $(DOCS_READY)
	JAX_PLATFORMS=cpu $(BIN)/python docs/execute_notebooks.py

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build
