# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help run test lint format bench live load soak mutants recording clean

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

# `$(BIN)/python -m benchmarks layer dense` measures sections and writes nothing.
bench: $(VENV)/.dev ## measure side by side, print ratios and write benchmarks/RESULTS.md
	$(BIN)/python -m pip install --quiet -r benchmarks/requirements.txt
	$(BIN)/python -m benchmarks

live: $(VENV)/.dev ## measure the live charts in a browser beside st.plotly_chart, and write benchmarks/LIVE.md
	$(BIN)/python -m tests.install_chromium
	$(BIN)/python -m benchmarks.live

# `make load N=60`: another class. `$(BIN)/python -m benchmarks.load --help` lists more.
load: $(VENV)/.dev ## let a class without browsers watch, print what it costs and write benchmarks/LOAD.md
	$(BIN)/python -m benchmarks.load --visitors $(or $(N),30)

soak: $(VENV)/.dev ## let a class work for ten minutes and check that all and everything is well afterwards
	$(BIN)/python -m benchmarks.soak --visitors $(or $(N),30) --minutes $(or $(MINUTES),10)

# Not part of `make test`, and its tool no part of what tests need. One thread, since a fork of a process with more may
# wait forever and would count as noticed. ONLY='moeviz.capacity*' measures one file.
mutants: $(VENV)/.dev ## change the rules one token at a time and print how much their tests notice
	$(BIN)/python -m pip install --quiet 'mutmut>=3.8,<3.9'
	rm -rf mutants
	OMP_NUM_THREADS=1 $(BIN)/python -m mutmut run --max-children 2 $(if $(ONLY),'$(ONLY)') > /dev/null
	$(BIN)/python -m mutmut results --all true | grep -v 'not checked' > mutants/results.txt
	@grep -E ': (survived|no tests|suspicious)' mutants/results.txt || true
	@awk -F'[.:] *' '{all[$$2]++; if ($$NF ~ /^(killed|timeout|segfault)$$/) dead[$$2]++} \
	  END {for (file in all) printf "%s.py: %d of %d noticed, %.1f %%\n", file, dead[file], all[file], 100 * dead[file] / all[file]}' \
	  mutants/results.txt

recording: $(VENV)/.run ## record again the start that a visitor sees first
	$(BIN)/python -m moeviz record moeviz/live/static/start.bin

clean: ## remove what the commands above made
	rm -rf $(VENV) mutants .pytest_cache .ruff_cache .hypothesis build *.egg-info
