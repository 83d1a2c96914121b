# Two commands on a fresh machine: `make demo` and `make test`. Nothing but Python >= 3.11 and pip is assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist worksteal
RUN := demo-$(shell date +%Y%m%d-%H%M%S)
STEPS ?= 120
GPU_BENCHMARK := --device cuda --dtype bfloat16 --shapes 8b --rows 64 --prompts 1500 8192 --alone

.PHONY: help install demo test test-slow test-numerics test-width campaign gpu lint docs proof proof-quick clean

help:
	@echo "make demo   install into $(VENV), train the tiny model on video files, show right answers before and after"
	@echo "make test   install into $(VENV), run the tests of functions and classes in two processes; under 12 minutes"
	@echo "make test-slow  tests of whole runs: several processes, kills, the wheel, commands and tutorials of the documentation"
	@echo "make test-numerics  the tests that compare numbers of models, with the kernels of a CPU without AVX"
	@echo "make test-width  all paths on one layer of the 8B model, at its width and with its vocabulary; 14 GiB"
	@echo "make campaign  random kills, damaged records, faults of a judge, full disks: under 40 minutes, one table"
	@echo "make gpu    on a machine with a GPU: its tests, decoding and training steps of the 8B model; under 10 minutes"
	@echo "make lint   ruff and mypy"
	@echo "make docs   the documentation as a site, in build/site; a broken link or reference fails"
	@echo "make proof  the paper's table in small, in two worlds: all runs, docs/miniature.md and atari.md; hours, and the same command goes on"
	@echo "make proof-quick  the same in minutes, to see that everything works; its numbers mean nothing"
	@echo "make clean  remove $(VENV), runs/ and build/"

install: $(VENV)/.installed

# A PyTorch that PyPI has no torchvision for must not be picked: the package allows torch>=2.11, this environment takes
# a newer one with its own torchvision.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]' 'torch>=2.14' torchvision
	touch $@

demo: install
	$(BIN)/futurel1 world --kinds '[zone]' --out runs/world --train 256 --test 64 --size 64 --footage true
	$(BIN)/futurel1 ask runs/world/videos/test-00002.mp4 "Imagine the zones after 2 steps."
	$(BIN)/futurel1 predict --config configs/tiny/predict.yaml --run_name $(RUN)-before
	$(BIN)/futurel1 fit --config configs/tiny/sft.yaml --run_name $(RUN) --trainer.max_steps $(STEPS)
	$(BIN)/futurel1 predict --config configs/tiny/predict.yaml --model.init_args.init_from runs/$(RUN) --model.init_args.save_latents true --run_name $(RUN)-after
	$(BIN)/futurel1 curves runs/$(RUN)
	$(BIN)/futurel1 report runs/$(RUN)-after
	@echo
	@echo "Trained the tiny latent reasoner on clips of the world of events and real footage (runs/world)."
	@echo "Right answers to its 64 held-out questions (chance 16), before and after:"
	@$(BIN)/futurel1 scores runs/$(RUN)-after --baseline runs/$(RUN)-before
	@echo "  report       runs/$(RUN)-after/report.html   (open it in a browser)"
	@echo "  curves       runs/$(RUN)/curves.png"
	@echo "  answers      runs/$(RUN)-after/predictions.jsonl"
	@echo "  metrics      runs/$(RUN)/metrics.csv   (TensorBoard: $(BIN)/tensorboard --logdir runs)"
	@echo "  checkpoint   runs/$(RUN)/checkpoints/last.ckpt"
	@echo "  transformers runs/$(RUN)/huggingface"

test: install
	HF_HUB_OFFLINE=1 $(PYTEST) -m 'not slow and not campaign and not width' $(ARGS)

# The marked files are named, here and below, because importing all others takes half a minute.
test-slow: install
	HF_HUB_OFFLINE=1 $(PYTEST) -m 'slow and not campaign' $$(grep -rl 'mark\.slow' tests) $(ARGS)

# Bounds that hold only for the sums of one CPU's kernels break here, and not first on somebody else's machine.
test-numerics: install
	HF_HUB_OFFLINE=1 ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=1 $(PYTEST) -m numerics $$(grep -rl 'mark\.numerics' tests) $(ARGS)

# One process: the test processes of `make test` would each need the memory.
test-width: install
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=2 $(BIN)/python -m pytest tests/test_true_width.py -m width $(ARGS)

campaign: install
	$(BIN)/python -m pip install --quiet --editable '.[dev,ray]'
	HF_HUB_OFFLINE=1 $(PYTEST) -m campaign $(ARGS)

# Not part of CI, which has no GPU; under 10 minutes with one.
gpu: install
	@if ! $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
	  echo "make gpu: no CUDA device, nothing to do"; exit 0; \
	fi; set -ex; \
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m gpu $(ARGS); \
	$(BIN)/python benchmarks/decoding.py $(GPU_BENCHMARK); \
	$(BIN)/python benchmarks/decoding.py $(GPU_BENCHMARK) --compile; \
	$(BIN)/python benchmarks/steps.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	HF_HUB_OFFLINE=1 NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "documentation: build/site/index.html (with search: $(BIN)/python -m http.server --directory build/site)"

PLANS := miniature atari

proof: install
	set -e; for plan in $(PLANS); do HF_HUB_OFFLINE=1 $(BIN)/python -m experiments.proof $$plan --jobs 2 $(ARGS); done

proof-quick: install
	set -e; for plan in $(PLANS); do \
	  rm -rf runs/$$plan-quick; HF_HUB_OFFLINE=1 $(BIN)/python -m experiments.proof $$plan --quick --root runs/$$plan-quick; \
	done

clean:
	rm -rf $(VENV) runs build
