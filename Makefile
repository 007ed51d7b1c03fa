# make demo     install, train a teacher on digits, distil a student from it (SEED=0)
# make test     install, run the tests
# make lint     install, run linter, formatter (as a check) and type checker
# make derive   install, write docs/flags.md anew from the settings
# make results  install, draw the figures in show_result/ and write the tables of the pages anew from results/
# make bench    install, compare speed and memory with the obvious implementation
# make soak     install, kill a run 25 times and see that it ends as one that was never stopped; then read
#               500 runs that are damaged

PYTHON ?= python3
PIP_FLAGS ?=
SEED ?= 0
DEMO := run/demo-seed$(SEED)
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: install demo test lint derive bench results soak

install: $(INSTALLED)

$(INSTALLED): pyproject.toml requirements.txt requirements-dev.txt requirements-extra.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "Python 3.10 or newer is needed: make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -r requirements.txt -r requirements-dev.txt -r requirements-extra.txt \
	    -c constraints.txt $(PIP_FLAGS)
	$(PY) -m pip install --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(INSTALLED)
	$(PY) train_scratch.py --dataset digits --model wrn16_1 --epochs 12 --batch-size 64 --lr 0.1 --wd 5e-4 \
	    --seed $(SEED) --output $(DEMO)/teacher.pth --overwrite
	$(PY) bsr_main.py --dataset digits --teacher wrn16_1 --teacher_ckpt $(DEMO)/teacher.pth --student wrn16_1 \
	    --batch_size 64 --epochs 30 --warmup 5 --kd_steps 30 --ep_steps 30 --g_steps 10 --bn 2 --test_teacher \
	    --seed $(SEED) --save_dir $(DEMO)/student --overwrite

test: $(INSTALLED)
	$(PY) -m pytest -q -n 2 --dist loadfile tests

results: $(INSTALLED)
	$(PY) show_result/ablation.py
	$(PY) show_result/hyperparameters/hp.py
	$(PY) show_result/results.py

soak: $(INSTALLED)
	$(PY) tests/robustness/soak.py
	FUZZ_CASES=500 $(PY) -m pytest -q tests/robustness/test_fuzz.py

bench: $(INSTALLED)
	$(PY) -W ignore benchmarks/bench.py

derive: $(INSTALLED)
	$(PY) scripts/derive.py

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
