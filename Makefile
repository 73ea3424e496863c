.DEFAULT_GOAL := help
.PHONY: help install test lint docs bench lock audit attacks

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

lock: ## pin versions and hashes of the core install but PyTorch (pip install uv); commit requirements/core.txt
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate \
		--no-emit-index-url --no-emit-package torch --override requirements/no-torch.txt --upgrade \
		--custom-compile-command "make lock" -o requirements/core.txt

audit: ## look up known vulnerabilities of the pinned and of the installed versions (pip install pip-audit)
	pip-audit --require-hashes --disable-pip -r requirements/core.txt
	pip-audit --local --skip-editable

attacks: ## attack raincast with hostile files, and print the table of what held
	pytest tests/attacks
