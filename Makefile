# Two commands: `make sweep` measures this machine, `make test` checks the project. Both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: sweep test test-fast test-slurm test-rest lint bench docs clean golden references published-reports published-ep4 published-ep8 published-run

sweep: $(STAMP)
	@$(BIN)/python -m launcher.sweep -m $(ARGS)

# The tests on a real Slurm sleep most of the time, so the others run in parallel. ARGS are pytest's, for one run of both.
test: lint
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	@$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target test-slurm test-rest
endif

test-slurm: $(STAMP)
	$(BIN)/python -m pytest tests/slurm

test-rest: $(STAMP)
	$(BIN)/python -m pytest --ignore=tests/slurm

# Nothing that starts ranks, Slurm, a sweep or a browser.
test-fast: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" --ignore=tests/slurm --ignore=tests/gpu $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m tests.timings $(ARGS)

docs: $(STAMP)
	$(BIN)/python -m launcher.config.manual docs/CONFIGS.md
	$(BIN)/python -c "from pathlib import Path; from launcher import library; from launcher.store import results_file; \
	  from launcher.validation import node; \
	  schemas = {'node': node, 'results': results_file, 'library': library}; \
	  [Path(f'docs/{name}.schema.json').write_bytes(module.schema()) for name, module in schemas.items()]"

# Pages, pictures and exports of the published runs, from their records, into outputs/reports.
published-reports: $(STAMP)
	$(BIN)/python -m tests.published

# The texts of the one published run that the tests compare to the letter, in the words of today.
golden: $(STAMP)
	$(BIN)/python -m tests.published golden

# The references that ship with the validation, from the published nodes.
references: $(STAMP)
	$(BIN)/python -m tests.validation.references

# On four, and eight, GPUs of one host, in an environment that has torch and deep_ep: PY=python3. The first took 444 and 467 s
# on four H200s; the second, not run yet, has two sweeps for the first one's four. With ARGS nothing is exported:
# ARGS="ep.share_gpus=true grid=smoke" tests the path on fewer GPUs,
# ARGS="hardware=cpu backend=alltoall workload=small grid=smoke measure=quick search.candidates=[]" on none.
PY ?= python3

published-ep4:
	set -e; for workload in deepseek_v3 qwen3_30b_a3b; do for dtype in bf16 fp8; do \
	  $(MAKE) --no-print-directory published-run EP=4 WORKLOAD=$$workload DTYPE=$$dtype; \
	done; done
	-$(PY) -m launcher.validate gpus=4 run=outputs/published/ep4-node

published-ep8:
	set -e; for dtype in fp8 bf16; do \
	  $(MAKE) --no-print-directory published-run EP=8 WORKLOAD=deepseek_v3 DTYPE=$$dtype; \
	done

RUN = outputs/published/ep$(EP)-$(WORKLOAD)-$(DTYPE)
published-run:
	$(PY) -m launcher.sweep -m ep=$(EP) grid=full workload=$(WORKLOAD) workload.dtype=$(DTYPE) run=$(RUN) \
	  'search.candidates=[[24,8,256]]' $(ARGS)
	$(if $(ARGS),,$(PY) -m launcher.export $(RUN) && \
	  $(PY) -m launcher.publish $(RUN) --library outputs/published/library)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(VENV) >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]' >&2
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
