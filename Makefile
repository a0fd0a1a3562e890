# `make` lists the verbs. The environment in .venv is made once, from hashed requirements; `make env CUDA=13` makes one for a GPU.
# Common variables: ARGS (passed on), NAME (a study), DATA (an image set), PYTHON (3.11 or 3.12).

# What an environment was made with stays: after `make env CUDA=13 PYTHON=python3.12`, `make run` uses that environment.
PYTHON ?= $(or $(shell cat .venv/interpreter 2>/dev/null),python3)
UV ?= uv
KIND := $(if $(CUDA),cuda$(CUDA),$(or $(shell cat .venv/kind 2>/dev/null),cpu))
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
REQUIREMENTS := .venv/made-$(KIND)-$(VERSION)
STAMP := .venv/made-pcexp
BIN := .venv/bin
LOCK := $(UV) pip compile --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --python-version 3.11 -q
PARTS := --extra tracking --extra images --extra bundled

# With it set, pip's and Python's compiled files would be missing, and every start of a command three times slower.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test check fix data report records figures claims bench bench-peers mutants env lock clean
.DELETE_ON_ERROR:

help:
	@echo "make VERB [NAME=study] [DATA=image set] [ARGS='passed on'] [CUDA=13]"
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/  \1 \2/p' $(MAKEFILE_LIST) | while read -r verb text; do printf '  %-13s%s\n' "$$verb" "$$text"; done

run: $(STAMP) ## run saddle escape on the bundled digits, print its claims, draw its figures (ARGS='data=mnist')
	$(BIN)/python -m pcexp +experiment=saddle_escape $(ARGS)

test: $(STAMP) ## run the tests, on up to 4 cores at once (ARGS='-k lanes')
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=worksteal $(ARGS)

check: $(STAMP) ## ruff, formatting, types and import contracts; all of them, even after one fails
	@status=0; \
	for tool in "ruff check ." "ruff format --check --output-format concise ." "mypy" "lint-imports --no-logo"; do \
		echo "$$tool"; $(BIN)/$$tool || status=1; \
	done; exit $$status

fix: $(STAMP) ## mend what ruff can mend, and format
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .

data: $(STAMP) $(if $(DATA),.venv/made-prepare) ## prepare an image set (DATA=mnist; needs network); alone: list what is there
	$(BIN)/python -m pcexp data $(DATA) $(ARGS)

report: $(STAMP) ## claims, figures and page of what has been run, in outputs/report/ (NAME=saddle_escape)
	$(BIN)/python -m pcexp report $(NAME) $(ARGS)

records: $(STAMP) ## merge the finished runs of a study into results/ and render them (NAME=saddle_escape)
	@test -n "$(NAME)" || { echo "make records needs a study, as in: make records NAME=saddle_escape"; exit 2; }
	$(BIN)/python -m pcexp records collect $(NAME) $(ARGS)

figures: $(STAMP) ## draw the figures of results/ again from the committed records (NAME=saddle_escape)
	$(BIN)/python -m pcexp report $(NAME) --results results $(ARGS)

claims: $(STAMP) ## judge the committed records again and print the table of claims; the same command as figures
	$(BIN)/python -m pcexp report $(NAME) --results results $(ARGS)

bench: $(STAMP) ## speed as ratios, against measured ceilings, and of whole grids
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/equilibrated.py
	$(BIN)/python benchmarks/depth.py $(ARGS)
	$(BIN)/python benchmarks/grids.py

bench-peers: $(STAMP) .venv/peers/made ## speed against other libraries, a quarter of an hour (ARGS='128 32 --network residual')
	$(BIN)/python benchmarks/peers.py --fabricpc-path .venv/peers/fabricpc --pcx-python .venv/peers/pcx/bin/python $(ARGS)

mutants: $(STAMP) ## plant known defects one at a time and expect the tests to fail
	$(BIN)/python tests/mutants/run.py $(ARGS)

env: $(STAMP) ## make the environment in .venv (CUDA=13 for a GPU)

lock: pyproject.toml ## resolve the requirements again (needs uv on the PATH, or UV=path)
	$(LOCK) --group build -o requirements/build.txt
	$(LOCK) pyproject.toml $(PARTS) --extra dev -o requirements/cpu.txt
	$(LOCK) pyproject.toml $(PARTS) --extra dev --extra cuda -o requirements/cuda13.txt
	$(LOCK) pyproject.toml $(PARTS) --extra prepare -c requirements/cpu.txt -o requirements/prepare.txt

clean: ## remove the environment and caches; outputs/ and results/ stay
	rm -rf .venv .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Build tools come first, hashed too: two requirements have no wheel, and the package itself is built from here. Without
# isolation nothing is fetched that a hash does not vouch for.
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check

$(REQUIREMENTS): requirements/build.txt requirements/$(KIND).txt
	@case "$(VERSION)" in 3.11|3.12) ;; *) \
		echo "Python 3.11 or 3.12 is needed, and $(PYTHON) is $(or $(VERSION),not there): name another with make env PYTHON=python3.12"; \
		exit 2;; esac
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) cannot make environments: on Debian, apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv --clear .venv
	$(PIP) --require-hashes -r requirements/build.txt
	$(PIP) --require-hashes --no-build-isolation --use-pep517 -r requirements/$(KIND).txt
	@echo $(KIND) > .venv/kind
	@echo $(PYTHON) > .venv/interpreter
	@touch $@

$(STAMP): $(REQUIREMENTS) pyproject.toml
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

# TensorFlow, which downloads and prepares image sets; reading them never needs it.
.venv/made-prepare: $(STAMP) requirements/prepare.txt
	$(PIP) --require-hashes --no-build-isolation --use-pep517 -r requirements/prepare.txt
	@touch $@

# Libraries to compare with: no requirement of this one, and pcx needs an older JAX, so an environment of its own.
.venv/peers/made: $(STAMP)
	$(PIP) --no-deps --target .venv/peers/fabricpc fabricpc==0.6.0
	$(PYTHON) -m venv --clear .venv/peers/pcx
	.venv/peers/pcx/bin/python -m pip install -q --disable-pip-version-check pcx==0.6.3
	@touch $@

requirements/%.txt:
	@echo "there is no $@: environments are$(patsubst requirements/%.txt, %,$(filter-out %build.txt %prepare.txt,$(wildcard requirements/*.txt)))"
	@exit 2
