.DEFAULT_GOAL := help
.PHONY: help install test lint docs bench

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-10s %s\n", $$1, $$2}'

install: ## install raincast with all that development needs, and the hooks of git where pre-commit is installed
	pip install -e ".[dev]"
	@command -v pre-commit >/dev/null && pre-commit install -t pre-commit -t pre-push || true

test: ## run the tests (make test ARGS="tests/models -x")
	pytest $(ARGS)

lint: ## check style, types and import rules
	ruff check .
	ruff format --check .
	mypy
	lint-imports

docs: ## build the documentation site into outputs/docs; a warning is an error
	python -m sphinx -q -W --keep-going -b html docs outputs/docs

bench: ## measure training and data loading (minutes; benchmarks/README.md lists the others)
	python benchmarks/training.py
	python benchmarks/data.py
