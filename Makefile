# Everything runs from a virtual environment in .venv that this file makes: `make demo` and `make test` are all a fresh machine needs.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: test-python help install demo readme test coverage test-pythons test-newest test-versions test-slow test-gpu reference lint format pretrain bench-optim bench-readout bench-data bench-predict bench-start bench-sweep study docs clean
.DEFAULT_GOAL := help

help:  ## list what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@echo "==> making $(VENV) and installing clipkal with its tested versions (about half a minute, 3 GB of packages)"
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"clipkal needs Python 3.11 to 3.13, but {sys.executable} is {v.major}.{v.minor}; try: make PYTHON=python3.12 …")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@UV_PYTHON= $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(STAMP)  ## make .venv and install clipkal into it

DEMO = clipkal -m dataset=rendered,digits method=zeroshot,adamw,kalman_online,kalman fewshot.shots=1,4,16 seed=1,2,3 \
       output_dir=outputs/demo tracking=disabled hydra/launcher=joblib hydra.launcher.n_jobs=2

demo: $(STAMP)  ## fine-tune the embedded CLIP on two embedded sets, 72 runs, and report (one to two minutes)
	@echo "==> $(DEMO)"
	@OMP_NUM_THREADS=1 $(BIN)/$(DEMO)
	@echo "==> clipkal-report outputs/demo"
	@$(BIN)/clipkal-report outputs/demo

readme: demo  ## make demo, then its table and figure into the README and docs/demo.md
	@$(BIN)/python -m benchmarks.readme

test: $(STAMP)  ## run the tests (under 10 minutes on 2 cores)
	@echo "==> running the tests"
	@$(BIN)/python -m pytest --numprocesses auto --durations 10

coverage: $(STAMP)  ## run the tests and list the lines that none of them executes (a quarter more time)
	@$(BIN)/python -m pytest --numprocesses auto --cov

test-pythons: $(STAMP) reference  ## run the tests on every Python 3.11 to 3.13 that is here, and compare the reference runs
	@for python in $$(.ci/pythons); do $(MAKE) --no-print-directory test-python FOUND=$$python || exit 1; done

test-newest: $(STAMP) reference  ## run the tests on the newest of these Pythons, and compare the reference runs
	@$(MAKE) --no-print-directory test-python FOUND=$$(.ci/pythons | tail -1)

test-python:  # FOUND: an interpreter; its environment is named after its version
	@version=$$($(FOUND) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	echo "==> the tests on Python $$version: $(FOUND)"; \
	$(MAKE) --no-print-directory test PYTHON=$(FOUND) VENV=.venv-$$version && \
	.venv-$$version/bin/python -m benchmarks.reference --compare outputs/reference.json

reference: $(STAMP)  ## the numbers of three reference runs, to outputs/reference.json
	@$(BIN)/python -m benchmarks.reference --write outputs/reference.json

test-versions: $(STAMP)  ## run the tests with the lowest and the newest allowed versions of every library (half an hour)
	@.ci/versions lowest newest

test-slow: $(STAMP)  ## run the tests that take minutes
	@$(BIN)/python -m pytest -m slow

test-gpu: $(STAMP)  ## run the tests that need a CUDA device
	@$(BIN)/python -m pytest -m gpu

lint: $(STAMP)  ## ruff (style and format) and mypy (types)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP)  ## let ruff format and fix the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

pretrain: $(STAMP)  ## make the embedded mini-CLIP anew (about half an hour; resumable)
	@$(BIN)/clipkal-pretrain

bench-optim: $(STAMP)  ## time the optimisers against AdamW, as ratios
	@$(BIN)/python -m benchmarks.optim
	@$(BIN)/python -m benchmarks.lora_step

bench-readout: $(STAMP)  ## time predictions with uncertainty against plain inference, as ratios
	@$(BIN)/python -m benchmarks.readout

bench-data: $(STAMP)  ## time the loading of images against torchvision's, as ratios
	@$(BIN)/python -m benchmarks.data_loading

bench-predict: $(STAMP)  ## time predictions of a finished run against a bare open_clip loop, as ratios
	@$(BIN)/python -m benchmarks.predict

bench-start: $(STAMP)  ## processor time of whole processes: --help, a bad value, a finished run, the default run
	@$(BIN)/python -m benchmarks.start

bench-sweep: $(STAMP)  ## what a tiny job of a sweep costs: processor time, jobs a minute, memory, disk
	@$(BIN)/python -m benchmarks.sweep

study: $(STAMP)  ## every optimiser on every data set at hand, at equal search budget (about an hour; resumable)
	@$(BIN)/python -m benchmarks.study

docs: $(STAMP)  ## build the site of docs/ into site/ and check its links; open site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## remove the virtual environments and caches (never results)
	rm -rf $(VENV) .venv-* .pytest_cache .mypy_cache .ruff_cache
