# Python >= 3.11 is all that has to be there: everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

# Other people's clients, which the server is tested with, and what builds the package for browsers.
# LangChain's lie apart, as they bring pytest plugins; what cannot be had makes its tests skip.
define CLIENTS
$(BIN)/python -m pip install --quiet --upgrade --target .venv/langchain \
  langchain-openai langchain-tests || echo "no LangChain: its tests will skip" >&2
npm install --silent --no-audit --no-fund --prefix .venv/node openai || \
  echo "no npm: tests of OpenAI's Node client will skip" >&2
npm ci --silent --no-audit --no-fund --prefix web || \
  echo "no npm: tests of the package for browsers will skip" >&2
endef

.PHONY: demo test
.DELETE_ON_ERROR:

demo: .venv/installed
	$(BIN)/sterna chat --prompt "What is 12 + 30?"

test: .venv/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 -rs

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Sterna needs Python 3.11 or newer; name one with make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv

# Not editable: what answers is what a user installs. After `make test` the sources are linked
# instead, and that is as good.
.venv/installed: $(BIN)/python pyproject.toml $(shell find src -type f -not -name '*.pyc')
	test -e .venv/installed-for-tests || $(BIN)/python -m pip install --quiet .
	touch $@

.venv/installed-for-tests: $(BIN)/python pyproject.toml web/package-lock.json
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	$(CLIENTS)
	touch $@
