# `make demo` and `make test` need nothing but Python 3.11+: they set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test soak check bench docs memory-table clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev,optimizers]'
	touch $(STAMP)

demo: $(STAMP)  ## Write the starter project to sdtui-demo and train it
	$(BIN)/sdtui demo

test: $(STAMP)  ## Run every test
	$(BIN)/python -m pytest -n 2

soak: $(STAMP)  ## Run the long versions of the reliability tests, an hour or so
	SDTUI_SOAK=1 $(BIN)/python -m pytest -n 2 tests/reliability

check: $(STAMP)  ## Format, lint, types, import contracts, dependencies
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

bench: $(STAMP)  ## Print the tables of benchmarks/ (ratios within one run)
	$(BIN)/python -m benchmarks

docs: $(STAMP)  ## Write the generated pages and schemas anew
	$(BIN)/python -m engine schema

memory-table: $(STAMP)  ## Trace the memory table anew, after an update of diffusers (about an hour)
	$(BIN)/python -m engine.memory_trace
	$(BIN)/python -m engine.memory_trace --model sdtui/starter/model

clean:
	rm -rf $(VENV) sdtui-demo
