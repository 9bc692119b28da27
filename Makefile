# Two commands do everything: `make run` and `make test`. They need Python 3.11 and make, nothing else.
PYTHON ?= python3.11
export PYTHON
ARGS ?=
PART ?=

.PHONY: run up down status predict env import new-pipeline test test-all lint format lock benchmark check-gpu clean help

help: ## what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

run: ## start the stack, retrain the digits, show the result (ARGS="--once --force --pipeline NAME")
	@exec ./nightshift run $(ARGS)

up: ## start the stack and leave it running
	@exec ./nightshift up

down: ## stop every process of the stack; its state is kept in .nightshift/
	@exec ./nightshift down

status: ## what is running, and where
	@exec ./nightshift status

env: ## what jobs that you start by hand need: eval "$$(make env)"
	@exec ./nightshift env

import: ## bring labeled pictures into the local collect server: FROM=<folder or labels.csv> GROUP=<name>
	@exec ./nightshift import $(if $(FROM),"$(FROM)") $(if $(GROUP),--group "$(GROUP)") $(ARGS)

new-pipeline: ## write the files of a new pipeline: NAME=<name>; asks for the rest (ARGS="--group …")
	@exec ./nightshift new-pipeline $(if $(NAME),--name "$(NAME)") $(ARGS)

predict: ## ask a served model about a picture: make predict MODEL=digits PICTURE=7.jpg (or http://…)
	@exec ./nightshift predict --model "$$MODEL" --picture "$$PICTURE"

test: python ## the tests that a person waits for (PART=jobs: that part alone; ARGS="-k gate" goes to pytest)
	@$(PYTHON) -m local.bootstrap --test all tools
	@exec $(PYTHON) -m tests.run $(PART) -- $(ARGS)

test-all: python ## every test that this machine can run, the slow ones, too; what CI runs
	@$(PYTHON) -m local.bootstrap --test all tools
	@exec $(PYTHON) -m tests.run --all $(PART) -- $(ARGS)

lint: python ## ruff and mypy
	@$(PYTHON) -m local.bootstrap --test all tools
	@exec $(PYTHON) -m tests.run house

format: python ## format the code
	@$(PYTHON) -m local.bootstrap tools
	@.venv/tools/bin/ruff check --fix --quiet . ; .venv/tools/bin/ruff format .

lock: python ## compile requirements/*.in anew
	@$(PYTHON) -m local.bootstrap tools
	@exec $(PYTHON) -m local.lock

check-gpu: ## on a GPU worker: does all that TensorRT plans need work here? (docs/gpu-workers.md)
	@exec docker run --rm --gpus all $${NIGHTSHIFT_REGISTRY:-nightshift}/tensorrt:$${NIGHTSHIFT_TAG:-dev} \
		python -m conversion_jobs.check_gpu $(ARGS)

clean: down ## remove the state (.nightshift/) and the environments (.venv/)
	@NIGHTSHIFT_STATE= ./nightshift clean
	rm -rf .nightshift .venv

.PHONY: python
python:
	@command -v "$(PYTHON)" > /dev/null || { echo "Nightshift needs Python 3.11, and there is no $(PYTHON) here: install it, \
	or say where it is: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
