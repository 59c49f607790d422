# One word per habit. `make demo` and `make test` set up all they need.
export UV_PYTHON_DOWNLOADS := never
SHELL := /bin/bash
PATH := $(CURDIR)/.tools/bin:$(PATH)
export PATH

.DEFAULT_GOAL := quick
.PHONY: quick setup setup-jdk setup-load demo test check fix unit cluster contract e2e sim bench docs

quick: setup check unit  ## Check and test what is quick.

setup:  ## Install uv, etcd and the dependencies, where they are missing.
	@scripts/setup

demo: setup  ## A cluster of three on this machine, an example deployed, a request answered.
	@scripts/demo

test: setup-jdk check  ## Everything that must pass.
	uv run pytest

setup-jdk:
	@scripts/setup --jdk

setup-load:
	@scripts/setup --load

check:  ## Format, lint, types.
	uv run ruff format --check .
	uv run ruff check .
	uv run mypy

fix:  ## Format and mend what can be mended by itself.
	uv run ruff format .
	uv run ruff check --fix .

unit contract cluster e2e:  ## One level of the tests.
	uv run pytest tests/$@

sim: setup  ## Thousands of deployments in virtual time, under faults; each seed can be replayed.
	uv run python -m tests.cluster.simulate --seeds 5000

bench: setup-load  ## Figures, with their floors measured in the same run. Takes half an hour.
	uv run python -m tests.bench

docs:  ## Write the references again from the code.
	uv run python docs/generate.py
