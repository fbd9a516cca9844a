# `make` lists the targets, which set up .venv first. What each stage does is in dvc.yaml and stages/.

PYTHON ?= python3
VENV := "$(CURDIR)/.venv/bin"
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# The data set in scikit-learn is small: it needs a smaller validation set, smaller mini-batches and more epochs.
DIGITS := -S data.dataset=digits -S preprocess.validation_size=143 -S train.batch_size=32 -S train.epochs=20

.PHONY: help demo repro test test-all lint bench portability
.DEFAULT_GOAL := help

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s  %s\n", $$1, $$2}' Makefile

demo: .venv/ready ## Run what is committed on a small data set that needs no network, in a clone in demo/
	rm -rf demo
	git clone --quiet . demo
	cd demo && $(VENV)/dvc exp run --quiet --name demo $(DIGITS)
	@printf '%s\n' '' 'The run is in demo/; your workspace is unchanged. Look at' \
	  '  demo/plots/mistakes.png            what the network gets wrong; eight more pictures beside it' \
	  '  demo/metrics/per_class.json        the accuracy for each digit' \
	  'Then' \
	  '  source .venv/bin/activate' \
	  '  (cd demo && dvc exp show)          shows the run beside the committed one of the full MNIST' \
	  '  (cd demo && lenet report --open)   shows all of it on one page' \
	  '  dvc repro                          runs the full MNIST, here'

repro: .venv/ready ## Run the stages that are not up to date
	$(VENV)/dvc repro

test: .venv/ready ## Run the tests, without the slow ones
	$(VENV)/pytest

# Three processes on two cores too, because tests of servers and clusters wait.
test-all: .venv/ready ## Run all tests, a quarter of an hour: also the slow ones, which kill, fuzz and train on MNIST
	$(VENV)/pytest -m '' --numprocesses 3

lint: .venv/ready ## Check style, types, imports and the GitHub workflow
	$(VENV)/ruff check
	$(VENV)/ruff format --check
	$(VENV)/mypy
	$(VENV)/lint-imports
	$(VENV)/zizmor --offline --quiet .github

bench: .venv/ready ## Compare the pipeline's speed with conventional code, 20 minutes; QUICK=1: 3 minutes, nothing is written
	$(VENV)/python benchmarks/bench.py $(if $(QUICK),--quick)

portability: .venv/ready ## Compare this processor's results with emulated ones', half an hour; needs qemu-user and valgrind
	$(VENV)/python benchmarks/portability.py

# uv installs the lock in a fraction of pip's time; pip installs uv itself, with the hashes of the lock.
.venv/ready: requirements.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: $(PYTHON) is Python " + sys.version.split()[0] + "; 3.11 or later is needed, for example: make PYTHON=python3.13")'
	@echo 'Setting up .venv: about a minute; on Linux 6 GB, most of it PyTorch for CUDA.'
	"$(PYTHON)" -m venv .venv
	sed -n '/^uv==/,/[^\\]$$/p' requirements.txt > .venv/uv.txt
	.venv/bin/python -m pip install --quiet --require-hashes -r .venv/uv.txt
	.venv/bin/uv pip sync --quiet --python .venv/bin/python requirements.txt
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
	.venv/bin/python -c 'import vl_convert; print(vl_convert.javascript_bundle(vl_version="5.21"))' > .venv/vega.js # for .dvc/plots/page.html
	touch $@
