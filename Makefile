# Everything lives in .venv/; no other environment is touched.
PYTHON ?= python3
SCALE ?= small
ARGS ?=
BIN := .venv/bin
READY := .venv/.ready
# uv where it is on PATH (seconds), else pip (minutes); $(call install,VENV) is followed by what is installed.
# uv does not read pip's settings: where pip is told of another index or of folders of wheels, pip is used.
UV := $(shell command -v uv >/dev/null && { $(PYTHON) -m pip config list; env; } 2>/dev/null | \
	grep -qiE '(^|[._])(PIP_)?(extra[-_])?(index[-_]url|find[-_]links)=' || command -v uv 2>/dev/null)
install = $(if $(UV),$(UV) pip install --quiet --python $(1)/bin/python,$(1)/bin/python -m pip install --quiet --disable-pip-version-check)

.PHONY: help setup litert transformers5 legal-bert legal-bert-structured summarize-7b ctr resnet-prune iot-camera teacher smoke push test test-slow test-transformers5 check cards check-cards docs format bench clean

help:
	@echo "make legal-bert [SCALE=small|full] [ARGS=\"--distill.num-hidden-layers 4\"]   run the recipe"
	@echo "make legal-bert-structured [SCALE=small|full]   a student's heads and neurons, or low rank, at the same bytes"
	@echo "make summarize-7b [SCALE=small|full] [ARGS=\"--base FOLDER\"]   4 bits for a causal LM"
	@echo "make ctr [SCALE=small|full]   a click model's embeddings, ten times smaller, and its A/B test"
	@echo "make resnet-prune [SCALE=small|full]   half of a ResNet's FLOPs, by five rankings"
	@echo "make iot-camera [SCALE=small|full]   a MobileNetV2, pruned and in int8, for a camera"
	@echo "make teacher      train the shipped teacher of the small scale anew"
	@echo "make smoke        the same on tiny models, in a minute"
	@echo "make push RECIPE=legal_bert HUB_MODEL_ID=org/name [SCALE=small]   upload a run with its evidence"
	@echo "make litert       the environment that export --to litert needs, in .venv-litert/"
	@echo "make transformers5   a second environment, with transformers 5, in .venv-transformers5/"
	@echo "make test         fast tests        make test-slow   the rest"
	@echo "make test-transformers5   tests of what differs there"
	@echo "make check        ruff, mypy, model cards"
	@echo "make cards        render model_cards/ from their report.json"
	@echo "make docs         build the documentation in site/, its links checked"
	@echo "make bench        benchmarks/legal_bert.py"

setup: $(READY)

# torch first and alone: a range in another package's requirements would pull another build of it.
$(READY): requirements.lock requirements-data.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "hfcompress needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 2; }
	@echo "making .venv/ with $(if $(UV),uv: under a minute,pip: some four minutes (one with uv on PATH)); it takes 2.7 GB"
	$(PYTHON) -m venv .venv
	$(call install,.venv) "$$(grep '^torch==' requirements.lock)"
	$(call install,.venv) -r requirements.lock
	$(call install,.venv) --no-deps -r requirements-data.lock
	$(call install,.venv) --no-deps --no-build-isolation -e .
	@touch $(READY)
	@echo "ready: . .venv/bin/activate, then hfcompress --help"

# LiteRT's converter cannot live beside the rest: it wants an older typing-extensions.
litert: .venv-litert/.ready

.venv-litert/.ready: requirements-litert.lock
	$(PYTHON) -m venv .venv-litert
	$(call install,.venv-litert) "$$(grep '^torch==' requirements-litert.lock)"
	$(call install,.venv-litert) -r requirements-litert.lock
	@touch .venv-litert/.ready

# transformers 5 beside .venv/, which Optimum keeps below 4.58.
transformers5: .venv-transformers5/.ready

.venv-transformers5/.ready: requirements-transformers5.lock requirements-data.lock pyproject.toml
	$(PYTHON) -m venv .venv-transformers5
	$(call install,.venv-transformers5) "$$(grep '^torch==' requirements-transformers5.lock)"
	$(call install,.venv-transformers5) -r requirements-transformers5.lock
	$(call install,.venv-transformers5) --no-deps -r requirements-data.lock
	$(call install,.venv-transformers5) --no-deps --no-build-isolation -e .
	@touch .venv-transformers5/.ready

legal-bert: $(READY)
	$(BIN)/hfcompress run legal_bert --scale $(SCALE) $(ARGS)

legal-bert-structured: $(READY)
	$(BIN)/hfcompress run legal_bert_structured --scale $(SCALE) $(ARGS)

summarize-7b: $(READY)
	$(BIN)/hfcompress run summarize_7b --scale $(SCALE) $(ARGS)

ctr: $(READY)
	$(BIN)/hfcompress run ctr_embeddings --scale $(SCALE) $(ARGS)

resnet-prune: $(READY)
	$(BIN)/hfcompress run resnet_prune --scale $(SCALE) $(ARGS)

iot-camera: $(READY)
	$(BIN)/hfcompress run iot_camera --scale $(SCALE) $(ARGS)

teacher: $(READY)
	OMP_WAIT_POLICY=passive $(BIN)/python -m hfcompress.recipes.licence_teacher

smoke: $(READY)
	$(BIN)/hfcompress run legal_bert --smoke $(ARGS)

push: $(READY)
	@test -n "$(RECIPE)" && test -n "$(HUB_MODEL_ID)" || \
		{ echo "make push RECIPE=legal_bert HUB_MODEL_ID=org/name"; exit 2; }
	$(BIN)/hfcompress push runs/$(RECIPE)-$(SCALE) --hub-model-id $(HUB_MODEL_ID) $(ARGS)

# Two at a time, a file's tests together: they share its fixtures.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# A few files take most of its time: a worker that is done takes half of what is left of the other's.
test-slow: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(ARGS)

# What reads folders of both versions, builds every encoder and trains: the files that were seen to pass there.
TRANSFORMERS5 := tests/architectures tests/contracts/test_decoders.py tests/contracts/test_encoders.py \
	tests/evaluation/test_generation.py tests/folders tests/training/test_training.py
# Optimum, which does not import there, is asked of .venv/.
test-transformers5: $(READY) .venv-transformers5/.ready
	HFCOMPRESS_OPTIMUM_PYTHON=$(CURDIR)/.venv/bin/python \
		.venv-transformers5/bin/python -m pytest -n 2 --dist loadfile $(TRANSFORMERS5) $(ARGS)

# In the same environment: the reference is made from the package.
docs: .venv/.docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "open site/index.html"

.venv/.docs-ready: $(READY) requirements-docs.lock
	$(call install,.venv) --no-deps -r requirements-docs.lock
	@touch .venv/.docs-ready

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m hfcompress.report.cards model_cards

cards: $(READY)
	$(BIN)/python -m hfcompress.report.cards --write model_cards

bench: $(READY)
	$(BIN)/python -m benchmarks.legal_bert $(ARGS)

format: $(READY)
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-litert .venv-transformers5 build site *.egg-info
