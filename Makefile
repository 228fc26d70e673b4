# make search   set up .venv and tune AdamSRT on the digits
# make test     set up .venv and run all tests
# make check    what CI runs: format, lint, types, tests
# make lab      ray up over SSH between network namespaces (root, Debian's openssh-server; minutes)
# make results  the comparisons in results/ (an hour or two; RESULTS_DATA names the folder with CIFAR-10)
# make bench    the next two: is it a better search, and is it fast?
# make bench-search    regret against epochs spent, beside random search and Ray's own classes (minutes)
# make bench-speed     optimizer steps, data, epochs and trial starts on a CPU, what tracking costs (minutes)
# make bench-scale     the driver's time with thousands of trials (minutes)
# make bench-chaos     a search while machines are killed (minutes)
# make bench-gpu       kernels, steps and epochs on a GPU (minutes; one line without a GPU)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CODE := adamsrt tune_adamsrt tests benchmarks training_example.py best_hyper_parameters.py

# Most tests wait for processes that they start, so that three side by side fill two cores. Those with clusters of several
# nodes come by themselves at the end.
PYTEST := $(BIN)/python -m pytest -m "not alone" -n 3 --dist loadfile --no-loadscope-reorder
PYTEST_ALONE := $(BIN)/python -m pytest -m alone

.PHONY: lab search test check format setup clean results bench bench-search bench-speed bench-scale bench-chaos bench-gpu

# The digits in full; CIFAR-10 reduced to what two cores train in an hour.
RESULTS_DATA ?= data
IN_RESULTS := --output results/runs --export results/best_hyper_parameters.py --tracking-uri sqlite:///results/mlflow.db
DIGITS := --setting resnet20-digits --optimizer all
CIFAR10 := --setting resnet20-cifar10 --optimizer adamsrt --optimizer adam --optimizer sgd --data-root $(RESULTS_DATA) \
    --limit-train-examples 2000 --epochs 8 --max-total-epochs 64 --confirm-candidates 2 --cpus-per-trial 1

search: setup
	$(BIN)/python -m tune_adamsrt.search --setting resnet20-digits

test: setup
	$(PYTEST)
	$(PYTEST_ALONE)

check: setup
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(PYTEST)
	$(PYTEST_ALONE)

lab: setup
	RAY_UP_LAB=1 $(BIN)/python -m pytest tests/cluster/test_ray_up.py

results: setup
	$(BIN)/python -m tune_adamsrt.search $(DIGITS) $(IN_RESULTS) --campaign resnet20-digits
	$(BIN)/python -m tune_adamsrt.search $(CIFAR10) $(IN_RESULTS) --campaign resnet20-cifar10-reduced
	for campaign in resnet20-digits resnet20-cifar10-reduced; do for table in "" --table; do \
	    $(BIN)/python -m tune_adamsrt.report $$table --no-figures --campaign $$campaign --output results/runs --out results/$$campaign; \
	done; done

bench: bench-search bench-speed

bench-search: setup
	$(BIN)/python -m benchmarks.search_efficiency

bench-speed: setup
	$(BIN)/python -m benchmarks.optimizer_step
	$(BIN)/python -m benchmarks.fused_launch
	$(BIN)/python -m benchmarks.data_loading
	$(BIN)/python -m benchmarks.epoch
	$(BIN)/python -m benchmarks.trial_start
	$(BIN)/python -m benchmarks.tracking_overhead

bench-scale: setup
	$(BIN)/python -m benchmarks.driver_scale

bench-chaos: setup
	$(BIN)/python -m benchmarks.chaos

bench-gpu: setup
	$(BIN)/python -m benchmarks.gpu

format: setup
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

setup: $(VENV)/installed

$(VENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, got " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing the pinned packages into $(VENV) (about 6 GB, mostly torch; a few minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
