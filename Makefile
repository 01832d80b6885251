# Two commands: `make sweep` measures this machine, `make test` checks the project. Both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: sweep test lint bench clean published-ep4 published-ep8

sweep: $(STAMP)
	@$(BIN)/python -m launcher.sweep -m $(ARGS)

test: lint
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m tests.timings $(ARGS)

# On four, and eight, GPUs of one host, in an environment that has torch and deep_ep: PY=python3. Some 7 and 4 minutes on
# H200s by the forecast of two. ARGS="ep.share_gpus=true grid=smoke" tests the path on fewer GPUs.
PY ?= python3

published-ep4:
	set -e; for workload in deepseek_v3 qwen3_30b_a3b; do for dtype in bf16 fp8; do \
	  $(PY) -m launcher.sweep -m ep=4 grid=full workload=$$workload workload.dtype=$$dtype \
	    run=outputs/published/ep4-$$workload-$$dtype 'search.candidates=[[24,8,256]]' $(ARGS); \
	done; done

published-ep8:
	set -e; for dtype in fp8 bf16; do \
	  $(PY) -m launcher.sweep -m ep=8 grid=full workload=deepseek_v3 workload.dtype=$$dtype \
	    run=outputs/published/ep8-deepseek_v3-$$dtype 'search.candidates=[[24,8,256]]' $(ARGS); \
	done

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(VENV) >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]' >&2
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
