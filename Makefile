# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help run test lint format bench recording clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# Stamps, so that a second call installs nothing and a changed requirements file installs again.
$(VENV)/.run: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.dev: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $(VENV)/.run $@

run: $(VENV)/.run ## start the playground and print its address
	$(BIN)/python -m streamlit run app.py

test: $(VENV)/.dev ## install what the tests need, then lint and run every test
	$(BIN)/python -m tests.install_chromium
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest

lint: $(VENV)/.dev ## check format and style only
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .

format: $(VENV)/.dev ## rewrite the code in the project's format
	$(BIN)/python -m ruff format .
	$(BIN)/python -m ruff check --fix .

bench: $(VENV)/.dev ## measure, side by side, and print ratios
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.commands

recording: $(VENV)/.run ## record again the start that a visitor sees first
	$(BIN)/python -m moeviz record moeviz/live/static/start.bin

clean: ## remove what the commands above made
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info
