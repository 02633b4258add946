# One command a job. Every target that runs Python first sets up .venv where it is missing or stale.

# Interpreters to try, in order. constraints.txt has wheels for Python 3.11 to 3.13.
PYTHON ?= python3.11 python3.12 python3.13 python3

venv := .venv
python := $(venv)/bin/python
ready := $(venv)/.stamp
unfinished := $(venv)/.unfinished

# A variable reaches the program only where it was given, so that the defaults live in configs/ alone. Paths are
# quoted twice, for Hydra's grammar and for the shell.
comma := ,
empty :=
space := $(empty) $(empty)
in_shell = '$(subst ','\'',$(1))'
in_hydra = "$(subst ",\",$(1))"
name_option = $(if $(2),$(call in_shell,$(1)=$(2)))
path_option = $(if $(2),$(call in_shell,$(1)=$(call in_hydra,$(2))))
paths_option = $(call in_shell,$(1)=[$(subst $(space),$(comma),$(foreach path,$(2),$(call in_hydra,$(path))))])

pretrain_options = $(call name_option,objective,$(OBJECTIVE)) $(call name_option,data,$(DATA)) \
    $(call name_option,name,$(RUN)) $(call path_option,data_root,$(DATA_ROOT)) $(ARGS)
evaluate_options = $(call name_option,suite,$(SUITE)) $(call path_option,data_root,$(DATA_ROOT)) \
    $(call path_option,output,$(OUTPUT)) $(ARGS)
sweep_options = $(call name_option,experiment,$(TABLE)) $(call name_option,data,$(DATA)) \
    $(call path_option,data_root,$(DATA_ROOT)) $(ARGS)
records_option = $(if $(OUTPUT),--records $(call in_shell,$(OUTPUT)/records))
# Without their dependencies: these would bring a second OpenCV over the headless one. What they do need is listed in
# pyproject.toml. No compiler: mmcv installs as pure Python, and evaluate/openmmlab/operators.py stands in for the rest.
openmmlab := onedl-mmengine onedl-mmcv onedl-mmdetection onedl-mmsegmentation imaug
pip_install = $(python) -m pip install -qq --no-compile --progress-bar off --no-warn-conflicts -c constraints.txt
install_openmmlab = $(pip_install) --no-deps $(openmmlab)
compared = $(call in_shell,$(A)) $(call in_shell,$(B)) $(foreach name,$(MORE),$(call in_shell,$(name)))

# Where this is set, every start of Python would compile the sources of torch anew, which takes longer than the rest.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.SUFFIXES:
.PHONY: help install openmmlab mmcv-ops datasets pretrain adapt adaptation eval-all leaderboard compare ablation test test-thorough test-all check docs bench cache clean-cache clean clean-all

help: ## list the targets and their variables
	@echo 'make TARGET [VARIABLE=value ...]'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'
	@echo
	@echo '  OBJECTIVE      what to pre-train with, a name in configs/objective (bits_reset)'
	@echo '  DATA           images, a name in configs/data (shapeworld); DATA_ROOT: folder they are in (data)'
	@echo '  RUN            name of the run under runs/ (OBJECTIVE-DATA)'
	@echo '  CHECKPOINT     a run, or whatever evaluation can load, to adapt'
	@echo '  CHECKPOINTS    runs, files or model names to evaluate, separated by spaces'
	@echo '  TARGETS        data to adapt to, names in configs/data separated by spaces'
	@echo '  SUITE          tasks to evaluate, a name in configs/suite; OUTPUT: folder for records and tables (results)'
	@echo '  TABLE          an ablation: a table of the paper by its number, or a name in configs/experiment'
	@echo '  A, B, MORE     checkpoints to compare'
	@echo '  ARGS           anything else, handed to the program as it is'
	@echo '  PYTHON         interpreter that .venv is made with (3.11 to 3.13)'

install: $(ready) ## set up .venv (the other targets do this by themselves)

openmmlab: $(ready) ## put OpenMMLab into .venv again (install does it too)
	$(install_openmmlab)

mmcv-ops: $(ready) ## optional, a compiler and minutes: mmcv's own operators, for deformable attention and the like
	$(python) -m evaluate.openmmlab.build $(ARGS)

datasets: $(ready) ## list the datasets: what is below DATA_ROOT, and the layout expected of the others; ARGS="--check NAME"
	$(python) -m evaluate.datasets $(if $(DATA_ROOT),--data-root $(call in_shell,$(DATA_ROOT))) $(ARGS)

pretrain: $(ready) ## train a backbone: OBJECTIVE, DATA, DATA_ROOT, RUN, ARGS
	$(python) -m pretrain $(pretrain_options)

adapt: $(ready) ## go on with CHECKPOINT on the unlabelled images of DATA: DATA_ROOT, OBJECTIVE, RUN, ARGS
	$(if $(and $(CHECKPOINT),$(DATA)),,$(error adapt needs a checkpoint and images: make adapt CHECKPOINT=runs/NAME DATA=NAME))
	$(python) -m evaluate.adapt $(call path_option,checkpoint,$(CHECKPOINT)) $(pretrain_options)

adaptation: $(ready) ## adapt CHECKPOINTS to TARGETS, measure before, after and what was forgotten: SUITE, DATA_ROOT, OUTPUT, ARGS
	$(python) -m evaluate.adaptation $(call paths_option,checkpoints,$(CHECKPOINTS)) \
	    $(call paths_option,adaptation.targets,$(TARGETS)) $(call path_option,data_root,$(DATA_ROOT)) \
	    $(call name_option,suite,$(SUITE)) $(call path_option,output,$(OUTPUT)) $(ARGS)

eval-all: $(ready) ## evaluate CHECKPOINTS on SUITE, or, with none given, everything in runs/ (pre-trains first if empty)
	$(if $(strip $(CHECKPOINTS)),\
	$(python) -m evaluate $(call paths_option,checkpoints,$(CHECKPOINTS)) $(evaluate_options),\
	$(python) -m evaluate.everything $(evaluate_options))

leaderboard: $(ready) ## tables, figures and the page from the records: OUTPUT, ARGS
	$(python) -m evaluate.leaderboard $(records_option) $(if $(OUTPUT),--output $(call in_shell,$(OUTPUT))) $(ARGS)

compare: $(ready) ## paired test between checkpoints: A, B, MORE, OUTPUT, ARGS
	$(if $(and $(A),$(B)),,$(error compare needs two checkpoints: make compare A=NAME B=NAME [MORE="NAME ..."]))
	$(python) -m evaluate.compare $(compared) $(records_option) $(ARGS)

ablation: $(ready) ## train and measure every run of a table: TABLE (3, 4, 9 to 13, objectives, ...), DATA, DATA_ROOT, ARGS
	$(if $(TABLE),,$(error ablation needs a table: make ablation TABLE=9, or a file of configs/experiment that holds a sweep))
	$(python) -m pretrain.sweep $(sweep_options)
	$(python) -m evaluate "checkpoints=$$($(python) -m pretrain.sweep $(sweep_options) list=true)" \
	    $(call name_option,suite,$(SUITE)) $(call path_option,data_root,$(DATA_ROOT)) $(call path_option,output,$(OUTPUT))

test: $(ready) ## the fast tests: ARGS go to pytest (-n 0 starts sooner for a few of them)
	$(python) -m pytest -q -n 2 --dist loadfile $(ARGS)

test-thorough: $(ready) ## the tests of a few seconds each that `make test` leaves out
	$(python) -m pytest -q -n 2 --dist loadfile -m thorough $(ARGS)

test-all: $(ready) ## every test, slow ones and those for a GPU too
	$(python) -m pytest -q -m '' $(ARGS)

check: $(ready) ## formatting, lint and types
	$(python) -m ruff format --check .
	$(python) -m ruff check .
	$(python) -m mypy

docs: $(ready) ## the documentation as pages in build/docs, strictly: a dead link is an error
	@$(python) -c 'import material' 2>/dev/null || $(python) -m pip install -qq --progress-bar off -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict --quiet $(ARGS)

bench: $(ready) ## speed of pre-training and of evaluation
	$(python) -m pretrain.bench
	$(python) -m evaluate.bench
	$(python) -m evaluate.bench_dense

cache: $(ready) ## size of the stored features by checkpoint and dataset
	$(python) -m evaluate.cache $(ARGS)

clean-cache: $(ready) ## remove stored features: all, or ARGS="older-than=DAYS", or keys that `make cache` shows
	$(python) -m evaluate.cache --clear $(or $(ARGS),all)

clean: ## remove caches of Python and of the tools; data/, runs/, results/, .cache/ and .venv/ stay
	rm -rf .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . \( -path ./$(venv) -o -path ./data -o -path ./runs \) -prune -o -name __pycache__ -prune -exec rm -rf {} +

clean-all: clean ## clean, and remove .cache/ (stored features) and .venv/; data/, runs/ and results/ stay
	rm -rf .cache $(venv)

# What was interrupted while new starts over; what a changed pyproject.toml or constraints.txt made stale is updated.
$(ready): pyproject.toml constraints.txt
	@set -eu; \
	if [ -e $(unfinished) ] || ! $(python) -m pip --version >/dev/null 2>&1; then \
	    for candidate in $(PYTHON) ''; do \
	        if [ -z "$$candidate" ]; then \
	            echo 'none of $(PYTHON) is Python 3.11 to 3.13 with venv: install one (Debian, Ubuntu: python3.11-venv)' \
	                'or name it (make PYTHON=/path/to/python3.11)' >&2; \
	            exit 1; \
	        fi; \
	        if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	            2>/dev/null; then break; fi; \
	    done; \
	    echo "setting up $(venv) with $$candidate (2-5 minutes, once)"; \
	    "$$candidate" -m venv --clear $(venv); touch $(unfinished); \
	else \
	    echo 'updating $(venv)'; \
	fi; \
	if ! $(pip_install) --prefer-binary -e '.[dev]' || ! $(install_openmmlab); then \
	    echo 'setting up $(venv) failed, see above; the same command tries again' >&2; \
	    exit 1; \
	fi; \
	rm -f $(unfinished); touch $@
