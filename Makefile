# `make help` lists what can be made. Everything is installed into .venv and everything made lies in runs/.

PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
RAY_TESTS := tests/runtime/test_ray_job.py tests/runtime/test_infer_on_ray.py
# The two builds of ONNX Runtime exclude each other: the GPU build where there is a GPU, the CPU build elsewhere.
ENGINE := $(if $(shell command -v nvidia-smi 2>/dev/null),gpu,cpu)
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help venv demo test test-ray matrix lint format docs pictures wheel clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

venv: .venv/.has-all ## make .venv with all extras, and nothing else
	@echo "next: source .venv/bin/activate; seg-train --help"

demo: $(DEMO)/sheet.png ## train, export, prove and run a network on the built-in dataset
	@$(BIN)/python -m segship.benchmarks.demo summary $(DEMO)

test: .venv/.has-dev .venv/.has-opencv4 lint ## run linters, type check and tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal $(addprefix --ignore=,$(RAY_TESTS))
	@echo "next: make demo, or read CONTRIBUTING.md before you change something"

test-ray: .venv/.has-dev ## run the tests that start Ray clusters, which do not stand each other on one machine
	for file in $(RAY_TESTS); do $(BIN)/python -m pytest -q $$file; done

matrix: .venv/.has-dev ## export every network in every form, and let every engine run it (hours)
	$(BIN)/python -m segship.benchmarks.export_matrix --all --out runs/matrix

lint: .venv/.has-dev ## run linters and the type check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/.has-dev ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/.has-dev ## write the commands' reference, docs/commands.md, from the commands
	$(BIN)/python docs/make_commands.py

pictures: .venv/.has-all $(DEMO)/sheet.png $(DEMO)/bench/pareto.png ## make the pictures of README and docs anew
	cp $(DEMO)/sheet.png docs/demo.png
	cp $(DEMO)/bench/pareto.png docs/pareto.png

wheel: .venv/.has-dev ## build sdist and wheel into dist/
	$(BIN)/python -m build
	@echo "next: pip install dist/*.whl"

clean: ## remove everything that was made
	rm -rf .venv runs/demo dist build *.egg-info src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/.made:
	@test -d src/segship/runtime || { echo "error: src/segship/runtime is no link to a folder: this clone was made" \
		"without symbolic links; clone again with: git clone -c core.symlinks=true" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "error: segship" \
		"needs Python 3.11 to 3.13, and $(PYTHON) is $$($(PYTHON) --version); name another: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	@touch $@

.venv/.has-demo: .venv/.made pyproject.toml constraints.txt
	@echo "installing segship[$(ENGINE),export] into .venv (PyTorch is large) ..."
	$(PIP) -e '.[$(ENGINE),export]'
	@touch $@

.venv/.has-all: .venv/.made pyproject.toml constraints.txt
	@echo "installing segship[$(ENGINE),openvino,tiff,export,tensorboard,bench] into .venv (PyTorch is large) ..."
	$(PIP) -e '.[$(ENGINE),openvino,tiff,export,tensorboard,bench]'
	@touch $@

.venv/.has-dev: .venv/.has-all
	$(PIP) -e '.[ray]' --group dev
	@touch $@

.venv/.has-opencv4: .venv/.has-dev
	$(BIN)/python -m segship.benchmarks.export_matrix --install-opencv4
	@touch $@

$(DEMO)/train/best.safetensors: | $(or $(wildcard .venv/.has-all),.venv/.has-demo)
	$(BIN)/seg-train --data demo --arch unet --base-channels 16 --epochs 10 --batch-size 4 --lr 3e-3 \
		--out $(DEMO)/train --overwrite

$(DEMO)/model.onnx: $(DEMO)/train/best.safetensors
	$(BIN)/seg-export $< --opset 17 -o $@ --report $(DEMO)/parity.md --overwrite

$(DEMO)/sheet.png: $(DEMO)/model.onnx
	$(BIN)/python -m segship.benchmarks.demo pictures $(DEMO)/held_out
	$(BIN)/seg-infer $< $(DEMO)/held_out/images --backend ort --out $(DEMO)/ort --save mask,color,overlay --overwrite | tail -n 2
	$(BIN)/seg-infer $< $(DEMO)/held_out/images --backend opencv --out $(DEMO)/opencv --save mask,color,overlay --overwrite | tail -n 2
	$(BIN)/python -m segship.benchmarks.latency $< --checkpoint $(DEMO)/train/best.safetensors --seconds 2
	$(BIN)/python -m segship.benchmarks.demo sheet $(DEMO)

$(DEMO)/model8.onnx: $(DEMO)/train/best.safetensors
	$(BIN)/seg-export $< --opset 17 -o $@ --precision int8 --calibrate demo --overwrite

# Status 3: OpenCV refuses the int8 file, and the table says so.
$(DEMO)/bench/pareto.png: $(DEMO)/model.onnx $(DEMO)/model8.onnx
	$(BIN)/seg-bench $^ --backend ort --backend opencv --backend openvino --data demo --out $(DEMO)/bench --overwrite \
		|| test $$? -eq 3
