PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench docs build

demo: .venv/.stamp
	$(BIN)/python examples/digits.py

# Three files at a time also on two cores, since many tests wait for processes; with a thread each, they do not fight for cores.
# The files are taken in the order of tests/conftest.py, and not by how many tests they have.
test: .venv/.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

check: .venv/.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/.stamp
	$(BIN)/python benchmarks/run.py

docs: .venv/.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

build: .venv/.stamp
	rm -rf dist
	$(BIN)/python -m build

# Without its stamp an environment is absent or half made (an interrupted pip leaves packages that look installed), so it is made anew.
.venv/.stamp: pyproject.toml constraints.txt
	test -e $@ || $(PYTHON) -m venv --clear .venv
	rm -f $@
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@
