# `make help` lists the targets. All that is needed: Linux, Python >= 3.11, make, gcc and a package index.
#
# Each target makes .venv when it is missing (90 to 180 s and 5.5 GB, nearly all of it CUDA libraries that torch comes with;
# they run on a CPU). A stamp in .venv says what it was made from; it is written last. Surprising:
# - Stamps hold contents, not times, so switching branches back and forth or `touch setup.py` installs nothing.
# - They hold the folder, too: a copied .venv would run the code of the place it was copied from, so it is made again.
# - A killed set-up leaves .venv/.unfinished, and is made again: pip takes a half unpacked package for a whole one.
# - Set-up talks on stderr: stdout of `make pretrain` ends with the result as one line of JSON. (`make -C folder` adds a
#   line of its own unless it is given --no-print-directory, too.)

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
ARGS ?=
# Tests that run at a time. Many start two ranks, so more cores than two are put to use anyway; 0 = in one process, for --pdb.
JOBS ?= 2
# Part of the tests: a folder of tests/; top for the files that lie in tests/ itself, or kills for tests/test_kills.py of
# them, since all of their long tests take over half an hour. Only from the command line: an AREA of the environment means
# something else.
AREA :=
FILES := $(patsubst tests/test_%.py,%,$(wildcard tests/test_*.py))
AREAS := top $(filter-out gpu,$(sort $(notdir $(patsubst %/,%,$(dir $(wildcard tests/*/test_*.py))))))
ifneq ($(filter-out $(AREAS) $(FILES),$(AREA))$(word 2,$(AREA)),)
$(error AREA=$(AREA) is none of the folders of tests: $(AREAS); nor of the files in tests/ itself: $(FILES))
endif
WHICH := $(if $(filter top,$(AREA)),$(wildcard tests/test_*.py),$(if $(filter $(FILES),$(AREA)),tests/test_$(AREA).py,$(AREA:%=tests/%)))

VENV := .venv
BIN := $(VENV)/bin
CORE := $(VENV)/.core
TEST := $(VENV)/.test
UNFINISHED := $(VENV)/.unfinished
PEERS_VENV := .venv-peers
PEERS_PYTHON := $(PEERS_VENV)/bin/python
PEERS := $(PEERS_VENV)/.peers
MAKEFLAGS += --no-print-directory

WANT := $(CURDIR) $(shell cat setup.py pyproject.toml constraints.txt | cksum)
HAVE := $(shell test ! -e $(UNFINISHED) && test -x $(BIN)/python && cat $(CORE) 2>/dev/null)
ifneq ($(HAVE),$(WANT))
.PHONY: $(CORE)
endif
ifneq ($(shell cat $(TEST) 2>/dev/null),$(WANT))
.PHONY: $(TEST)
endif

ifneq ($(shell cat $(PEERS) 2>/dev/null),$(WANT) $(shell cksum < benchmarks/peers.txt))
.PHONY: $(PEERS)
endif

.PHONY: help setup pretrain test test-fast test-long test-device check format bench bench-quick speedrun gpu gpu-speed gpu-pack clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile
	@echo 'ARGS="…" goes on to what a target runs: make pretrain ARGS="data.source=images/ output=runs/first"'
	@echo 'AREA=NAME narrows test, test-fast and test-long to one of: $(AREAS) (top: the files in tests/ itself, kills: tests/test_kills.py)'

setup: $(CORE)  ## make .venv with what training needs
	@echo "ready: $(BIN)/seer --help" >&2

pretrain: $(CORE)  ## train on the built-in sample images, one rank a GPU
	@n=1; \
	: 'Counting with torch costs 2 to 4 s, so it is asked only where there is a device file of a GPU.'; \
	if ls /dev/nvidia[0-9]* /dev/kfd /dev/dxg >/dev/null 2>&1; then \
		n=$$($(BIN)/python -c 'import torch; print(torch.cuda.device_count())') || exit; fi; \
	if [ "$$n" -gt 1 ]; then \
		: 'what torchrun leaves ranks between SIGTERM and SIGKILL, in seconds'; \
		export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600; \
		exec $(BIN)/python -m torch.distributed.run --standalone --nproc_per_node="$$n" \
			-m seer pretrain recipe=sample $(ARGS); \
	else exec $(BIN)/seer pretrain recipe=sample $(ARGS); fi

test: $(TEST)  ## all tests but the long ones, two at a time
	@$(call side_by_side,not long and not gpu)

test-fast: $(TEST)  ## the tests that take milliseconds, two at a time
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow and not long and not gpu" $(WHICH) $(ARGS)

test-long: $(TEST)  ## the long tests alone, two at a time
	@$(call side_by_side,long and not gpu)

# A folder of its own, so that .venv stays what its stamp says and the other tests go on without these packages: it reads torch
# and the rest out of .venv and adds what that lacks. A platform that an extra has no wheel for is told, not failed: what
# is installed there without it is what `make test` has tried.
DEVICE := .venv-device
EXTRAS := device,onnx,huggingface
WHEELS_OF := executorch,torchao,coremltools,onnx,onnxruntime,tokenizers
DEVICE_TESTS := $(patsubst %,tests/%.py,export/test_programs export/test_program_heads export/test_export_of_heads \
	export/test_int8_accuracy export/test_huggingface export/test_push cli/test_measure models/test_foreign)
test-device: $(TEST)  ## the tests that need the extras device, onnx and huggingface, in .venv-device
	@if [ "$$(cat $(DEVICE)/.made 2>/dev/null)" != '$(WANT) $(EXTRAS)' ]; then ( $(call make_device) ) >&2; status=$$?; \
		[ $$status -ne 3 ] || exit 0; [ $$status -eq 0 ] || exit $$status; fi; \
	$(DEVICE)/bin/python -m pytest -n $(JOBS) --dist loadfile -m "not long and not gpu" $(DEVICE_TESTS) $(ARGS)

check: $(TEST)  ## lint, format and types, changing nothing
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(TEST)  ## put imports and layout in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# The peers live beside .venv, in an environment that sees what .venv has: the same torch on both sides, installed once.
bench: $(PEERS)  ## the project beside its peers, by estimate 30 minutes; ARGS="images=photos.tar output=page.md areas=step,lars"
	@$(BIN)/python benchmarks/bench.py peers=$(PEERS_PYTHON) $(ARGS)

bench-quick: $(PEERS)  ## the same at fewer sizes and turns, under three minutes on two cores
	@$(BIN)/python benchmarks/bench.py peers=$(PEERS_PYTHON) quick=true $(ARGS)

speedrun: $(CORE)  ## learn CIFAR-10 without labels against the clock: make speedrun CIFAR=cifar10-train.tar ARGS="time=20min"
	@$(BIN)/python benchmarks/speedrun.py $(CIFAR) $(ARGS)

# An interpreter that can import torch is used as it is: GPU machines tend to bring their own build, and no network. What it
# lacks may lie in a folder: make gpu WHEELS=wheels
gpu:  ## equalities, layouts, steps and layers on a GPU (4 min), with PYTHON as it is where that has torch; ARGS="output=gpu.json"
	@$(call on_gpu,benchmarks/gpu.py $(ARGS))

gpu-speed:  ## the speedrun on a GPU (5 min): make gpu-speed WHEELS=carried/wheels ARGS="data=carried"
	@$(call on_gpu,benchmarks/gpu_speed.py $(ARGS))

gpu-pack: $(CORE)  ## what to carry to a GPU machine without network: make gpu-pack ARGS="output=carried cifar=cifar10-train.tar"
	@$(BIN)/python benchmarks/gpu_pack.py $(ARGS)

clean:  ## remove .venv, .venv-device, .venv-peers, builds and caches; runs/ stays
	@rm -rf $(VENV) $(DEVICE) $(PEERS_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find seer configs tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || :

# $(call side_by_side,which tests): JOBS at a time, then those that must have no other beside them. A file's tests stay
# together, since they share what one of them has made. Status 5 of pytest: ARGS leave no test of a kind.
define side_by_side
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not alone and $(1)" $(WHICH) $(ARGS); side=$$?; \
	[ $$side -eq 0 ] || [ $$side -eq 5 ] || exit $$side; \
	$(BIN)/python -m pytest -m "alone and $(1)" $(WHICH) $(ARGS); alone=$$?; \
	[ $$alone -eq 5 ] || exit $$alone; \
	if [ $$side -eq 5 ] && [ -n "$(AREA)" ] && [ -z "$(ARGS)" ]; then echo "AREA=$(AREA) has no tests of this kind"; exit 0; fi; \
	exit $$side
endef

# $(call on_gpu,script and words): by PYTHON where that has torch, else by .venv; device=cpu among the words needs no GPU.
define on_gpu
	has_gpu() { "$$1" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else 3)' 2>/dev/null; }; \
	python="$(or $(PYTHON),python3)"; has_gpu "$$python"; status=$$?; \
	if [ $$status -ne 0 ] && [ $$status -ne 3 ]; then \
		$(MAKE) -s $(TEST) >&2 || exit; python=$(BIN)/python; has_gpu "$$python"; status=$$?; fi; \
	if [ $$status -eq 3 ] && [ -z "$(filter device=cpu,$(ARGS))" ]; then echo "No GPU here that torch can use, so nothing was run."; exit 0; fi; \
	if [ -n "$(WHEELS)" ]; then "$$python" -m pip install -q --no-index --no-deps --upgrade --target .gpu $(WHEELS)/*.whl || exit; fi; \
	PYTHONPATH=.gpu:. exec "$$python" $(1)
endef

# $(call install,what to install): pip, with the mark that a kill leaves behind. When pip itself says no (offline, an
# error in setup.py), nothing is half unpacked: the mark goes, and the next call tries again in place.
# sh runs a trap when its child has ended; without it a Ctrl-C that pip turns into exit 1 would look orderly.
define install
	touch $(UNFINISHED); \
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(1) || { status=$$?; \
		[ $$status -ge 128 ] || rm -f $(UNFINISHED); exit $$status; }; \
	rm -f $(UNFINISHED)
endef

# $(call make_device): ends with 3 where the index has no wheel of a package for this platform. Of a tool without network pip says
# the same, but by then `make test` has failed. It is only whole with .made in it, so a cut one is made again.
define make_device
	trap 'exit 130' INT TERM HUP; rm -rf $(DEVICE); \
	echo "making $(DEVICE) with the extras $(EXTRAS)"; \
	$(BIN)/python -m venv $(DEVICE) || exit 1; \
	$(DEVICE)/bin/python -c 'import sysconfig as s, sys; open(s.get_path("purelib") + "/venv.pth", "w").write( \
		"import site; site.addsitedir(%r)\n" % s.get_path("purelib", vars={"base": sys.argv[1]}))' '$(CURDIR)/$(VENV)' || exit 1; \
	$(DEVICE)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt --only-binary $(WHEELS_OF) \
		-e '.[$(EXTRAS)]' 2>$(DEVICE)/pip.log; status=$$?; cat $(DEVICE)/pip.log; \
	if [ $$status -ne 0 ]; then \
		none=$$(sed -n 's/^ERROR: No matching distribution found for //p' $(DEVICE)/pip.log); [ -n "$$none" ] || exit 1; \
		echo "The package index has no $$none for this platform, so the tests of $(EXTRAS) were not run."; exit 3; fi; \
	echo '$(WANT) $(EXTRAS)' > $(DEVICE)/.made
endef

$(CORE):
	@exec >&2; set -e; trap 'exit 130' INT TERM HUP; \
	case '$(HAVE)' in \
	'$(CURDIR) '*) echo "setup.py, pyproject.toml or constraints.txt changed: bringing .venv up to date" ;; \
	*) \
		if [ -e $(UNFINISHED) ] || [ -e $(CORE) ]; then \
			echo ".venv was left half made, or was made elsewhere: making it again"; rm -rf $(VENV); fi; \
		python='$(PYTHON)'; \
		"$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
			echo "PYTHON='$$python' will not do: SEER needs Python >= 3.11 with venv" \
				"(Debian: package python3-venv); name one: make PYTHON=/path/to/python3.11"; exit 1; }; \
		echo "making .venv with $$("$$python" -V): 90 to 180 s and 5.5 GB"; \
		mkdir -p $(VENV); touch $(UNFINISHED); "$$python" -m venv $(VENV) ;; \
	esac; \
	$(call install,-e .); echo '$(WANT)' > $(CORE)

$(TEST): $(CORE)
	@exec >&2; set -e; trap 'exit 130' INT TERM HUP; \
	$(call install,-e '.[test]'); echo '$(WANT)' > $(TEST)

# Its stamp is written last. Without a package index the old one is gone and the benchmark measures ours alone, which it says.
$(PEERS): $(CORE)
	@exec >&2; set -e; trap 'exit 130' INT TERM HUP; rm -rf $(PEERS_VENV); \
	echo "making $(PEERS_VENV) with what the project is measured beside: 20 s and 60 MB"; \
	$(BIN)/python -m venv $(PEERS_VENV); \
	folder='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	echo "import site; site.addsitedir('$$($(BIN)/python -c "$$folder")')" > "$$($(PEERS_PYTHON) -c "$$folder")/zz_venv.pth"; \
	if $(PEERS_PYTHON) -m pip install -q --disable-pip-version-check -c constraints.txt -r benchmarks/peers.txt; \
	then echo '$(WANT) $(shell cksum < benchmarks/peers.txt)' > $(PEERS); \
	else echo "the peers cannot be installed (is there a package index?): ours are measured alone"; fi
