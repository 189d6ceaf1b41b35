# make demo     a fresh environment, and one picture from the embedded model
# make test     a fresh environment, style, types and tests
# make nano     train the embedded model from nothing (hours on two cores; BUDGET=toy: minutes)
# make interop  the same folders in the unmodified reference, in an environment of its own

PYTHON ?= python3
ENVIRONMENTS ?= .venv
PIP_FLAGS ?= --quiet --disable-pip-version-check

.PHONY: demo test nano interop clean

demo: $(ENVIRONMENTS)/demo/ready
	$(ENVIRONMENTS)/demo/bin/arimage generate "a red fox on a blue background" --seed 1 -o demo.png

test: $(ENVIRONMENTS)/test/ready
	$(ENVIRONMENTS)/test/bin/ruff check .
	$(ENVIRONMENTS)/test/bin/ruff format --check .
	$(ENVIRONMENTS)/test/bin/mypy
	$(ENVIRONMENTS)/test/bin/python -m pytest tests --ignore tests/interop

nano: $(ENVIRONMENTS)/train/ready
	ARIMAGE=$(ENVIRONMENTS)/train/bin/arimage configs/nano/run.sh

interop: $(ENVIRONMENTS)/interop/ready
	$(ENVIRONMENTS)/interop/bin/python -m pytest tests/interop

$(ENVIRONMENTS)/demo/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(ENVIRONMENTS)/demo
	$(ENVIRONMENTS)/demo/bin/pip install $(PIP_FLAGS) -c constraints.txt -e .
	touch $@

$(ENVIRONMENTS)/test/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(ENVIRONMENTS)/test
	$(ENVIRONMENTS)/test/bin/pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
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
