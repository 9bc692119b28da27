# Two commands do everything: `make run` and `make test`. They need Python 3.11 and make, nothing else.
PYTHON ?= python3.11
LOCAL = .venv/services/bin/python -m local
ARGS ?=
PART ?=

.PHONY: run up down status predict env import new-pipeline test test-all lint format lock benchmark check-gpu clean help

help: ## what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

run: install ## start the stack, retrain the digits, show the result (ARGS="--once --force --pipeline NAME")
	@exec $(LOCAL) run $(ARGS)

up: install ## start the stack and leave it running
	@exec $(LOCAL) up

down: ## stop every process of the stack; its state is kept in .nightshift/
	@if [ -x .venv/services/bin/python ]; then exec $(LOCAL) down; else echo "nothing is running"; fi

status: ## what is running, and where
	@if [ -x .venv/services/bin/python ]; then exec $(LOCAL) status; else echo "nothing is installed yet: make run"; exit 3; fi

env: ## what jobs that you start by hand need: eval "$$(make env)"
	@if [ -x .venv/services/bin/python ]; then exec $(LOCAL) env; else echo "nothing is installed yet: make run" >&2; exit 3; fi

import: install ## bring labeled pictures into the local collect server: FROM=<folder or labels.csv> GROUP=<name>
	@.venv/services/bin/python -m services.collect.importers $(if $(FROM),"$(FROM)") $(if $(GROUP),--group "$(GROUP)") --directory "$${NIGHTSHIFT_STATE:-.nightshift}/collect" $(ARGS)

new-pipeline: install ## write the files of a new pipeline: NAME=<name>; asks for the rest (ARGS="--group …")
	@$(LOCAL) new-pipeline $(if $(NAME),--name "$(NAME)") $(ARGS)

predict: ## ask a served model about a picture: make predict MODEL=digits PICTURE=7.jpg (or http://…)
	@if [ -x .venv/services/bin/python ]; then exec $(LOCAL) predict --model "$$MODEL" --picture "$$PICTURE"; else echo "nothing is installed yet: make run"; exit 1; fi

test: ## the tests that a person waits for (PART=jobs: that part alone; ARGS="-k gate" goes to pytest)
	@$(PYTHON) -m local.bootstrap --test all tools
	@exec $(PYTHON) -m tests.run $(PART) -- $(ARGS)

test-all: ## every test that this machine can run, the slow ones, too; what CI runs
	@$(PYTHON) -m local.bootstrap --test all tools
	@exec $(PYTHON) -m tests.run --all $(PART) -- $(ARGS)

lint: ## ruff and mypy
	@$(PYTHON) -m local.bootstrap --test all tools
	@exec $(PYTHON) -m tests.run house

format: ## format the code
	@$(PYTHON) -m local.bootstrap tools
	@.venv/tools/bin/ruff check --fix --quiet . ; .venv/tools/bin/ruff format .

lock: ## compile requirements/*.in anew
	@$(PYTHON) -m local.bootstrap tools
	@exec $(PYTHON) -m local.lock

check-gpu: ## on a GPU worker: does all that TensorRT plans need work here? (docs/gpu-workers.md)
	@exec docker run --rm --gpus all $${NIGHTSHIFT_REGISTRY:-nightshift}/tensorrt:$${NIGHTSHIFT_TAG:-dev} \
		python -m conversion_jobs.check_gpu $(ARGS)

clean: down ## remove the state (.nightshift/) and the environments (.venv/)
	@if [ -x .venv/services/bin/python ]; then NIGHTSHIFT_STATE= $(LOCAL) clean; fi
	rm -rf .nightshift .venv

.PHONY: install
install:
	@$(PYTHON) -m local.bootstrap services airflow jobs triton
