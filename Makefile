# Each of these works on a fresh machine: it makes its own environment first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-slow test-all lint

quickstart: .venv/installed
	$(BIN)/python train_unconditional.py --config quickstart
	$(BIN)/ddpm-hf sample runs/quickstart --num_images 64 --batch_size 64 --steps 100 \
		--out runs/quickstart/digits.png --strip runs/quickstart/strip.png
	@echo
	@echo "Drawn by your own model:  runs/quickstart/digits.png, and how it got there: runs/quickstart/strip.png"
	@echo "How it learned:           runs/quickstart/samples/, $(BIN)/tensorboard --logdir runs"
	@echo "More of them:             $(BIN)/ddpm-hf sample runs/quickstart --num_images 256 --sampler ddim --steps 50 --out digits.png"
	@echo "Your own images:          cp configs/image_folder.yaml mine.yaml, set data.source in it, then"
	@echo "                          $(BIN)/accelerate launch train_unconditional.py --config mine.yaml"

test: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest --durations=5

test-slow: .venv/installed-test
	$(BIN)/pytest -m slow --durations=10

test-all: test test-slow

lint: .venv/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/installed: setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@
