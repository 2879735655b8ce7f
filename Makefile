# Everything from a bare Debian or Ubuntu with git, make and python3: `make run`, `make test`. See `make help`.
PYTHON ?= python3
VENV ?= .venv
VENV_EXPORT ?= .venv-export
ARGS ?=
# What `venv` installs, and in which words it says how much that is.
LOCK := requirements.lock
BESIDE :=
SIZE := about a minute; it takes 0.5 GB and downloads a fifth of that

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help run test test-export test-os lint types coverage explore sequences mutants soak lock clean venv
# What a user's shell sets for other projects must not change what is installed, tested or run here.
unexport $(filter PYTHON% PYTEST_% MYPY% RUFF_% VIRTUAL_ENV PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER PIP_CONSTRAINT \
	PIP_REQUIRE_VIRTUALENV PIP_NO_BINARY PIP_NO_DEPS PIP_DRY_RUN,$(.VARIABLES))

help:  ## this list
	@echo "make TARGET [ARGS='...'] [PYTHON=python3.12] [VENV=folder]"
	sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1\t\2/p' Makefile

run: venv  ## drives the simulated robot to the cup; ARGS='--seed 7' in another room
	@exec "$(VENV)/bin/mvla-daemon" --config config.toml --live $(ARGS)

test: venv  ## all tests; ARGS='tests/test_link_v1.py -x' for some
	@exec "$(VENV)/bin/python" -m pytest $(ARGS)

# PyTorch is pinned in requirements.torch.txt. On x86-64 the ordinary index has it with CUDA, which is gigabytes; pip
# takes a build without CUDA (0.2 GB) where it is told of one, as by PIP_FIND_LINKS=FOLDER or PIP_EXTRA_INDEX_URL.
test-export: export MVLA_TEST_NEEDS := 1
test-export:  ## the tests of exporting and training, with PyTorch in an environment of their own (gigabytes with CUDA)
	@$(MAKE) --no-print-directory venv VENV='$(VENV_EXPORT)' LOCK=requirements.export.lock \
		BESIDE=requirements.torch.txt SIZE='minutes; it takes 1.7 GB, and several more with the CUDA build of PyTorch'
	exec "$(VENV_EXPORT)/bin/python" -m pytest -m needs $(ARGS)

# Root, systemd-nspawn, debootstrap and qemu are needed; where one is missing this fails and says which.
# MVLA_TEST_OS=optional skips instead.
test-os: export MVLA_TEST_OS ?= 1
test-os: venv  ## the service under a real systemd, in a container and on a virtual machine (root; ten minutes at first)
	@exec "$(VENV)/bin/python" -m pytest tests/os $(ARGS)

lint: venv  ## ruff: rules and format
	@"$(VENV)/bin/ruff" check
	exec "$(VENV)/bin/ruff" format --check

types: venv  ## mypy, strict
	@exec "$(VENV)/bin/python" -m mypy

# What can be proved of the pure core; `make test` has the short forms.
coverage: venv  ## every branch of core/ and motors/ is tested (a minute)
	@mkdir -p build
	"$(VENV)/bin/python" -m coverage run -m pytest -q $(patsubst %,tests/test_%.py,action admission freshness image \
		limits link_v1 motion_watch mvla safety schedule serial_port)
	exec "$(VENV)/bin/python" -m coverage report $(ARGS)

explore: venv  ## every life of the state machine, with its rules judged at each step (minutes)
	@exec "$(VENV)/bin/python" -m tests.exploration $(ARGS)

sequences: venv  ## a hundred thousand random sequences of events through gate and codec (ten minutes)
	@exec "$(VENV)/bin/python" -m tests.sequences $(ARGS)

mutants: venv  ## a thousand small faults put into the core, each of which a test must notice (half an hour)
	@exec "$(VENV)/bin/python" scripts/mutants.py $(ARGS)

soak: venv  ## an hour of the simulated robot with faults at random moments; ARGS='--minutes 5'
	@exec "$(VENV)/bin/python" scripts/soak.py $(ARGS)

lock:  ## requirements.lock anew from pyproject.toml (needs uv)
	@exec scripts/lock.sh $(ARGS)

clean:  ## removes what was built, the environments too
	@for venv in "$(VENV)" "$(VENV_EXPORT)"; do
		if [ -e "$$venv/.made-by-make" ]; then rm -rf "$$venv"; fi
	done
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find mvla_daemon scripts tests -name __pycache__ -prune -exec rm -rf {} +

# The environment is made once, and again when its recipe has changed: the locked versions, the project's metadata, the
# interpreter, or the place (scripts in an environment hold its full path).
venv:
	@say() { echo "$$*" >&2; }
	python='$(PYTHON)' venv='$(VENV)' lock='$(LOCK)' beside='$(BESIDE)'
	if ! command -v "$$python" >/dev/null; then
		say "There is no $$python: install it with 'sudo apt install python3 python3-venv'."
		exit 69
	fi
	about=$$("$$python" -c 'import platform, sys; print("%s %s %s %s" % (sys.version_info[:2] +
		(platform.python_implementation(), getattr(sys, "base_prefix", ""))))')
	read -r major minor implementation _ <<<"$$about"
	if [ "$$major $$implementation" != "3 CPython" ] || ((minor < 10 || minor > 13)); then
		say "$$python is $$implementation $$major.$$minor, but CPython 3.10 to 3.13 is needed: install one, for example" \
			"with 'sudo apt install python3.12 python3.12-venv', and name it with 'make PYTHON=python3.12'."
		exit 69
	fi
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then
		say "$$python cannot make environments: install its venv with 'sudo apt install python3.$$minor-venv'."
		exit 69
	fi
	exec 9<Makefile
	flock 9  # two terminals must not set up at once
	mark=$$venv/.made-by-make
	stamp=$$(echo "$$about $$PWD $$venv"; sha256sum "$$lock" $$beside pyproject.toml)
	if [ "$$(cat "$$mark" 2>/dev/null)" = "$$stamp" ]; then exit 0; fi
	if [ -e "$$venv" ] && [ ! -e "$$mark" ]; then
		say "$$venv was not made by this Makefile: remove it yourself, or choose another folder with VENV=folder."
		exit 73
	fi
	rm -rf "$$venv"
	mkdir -p "$$venv"
	touch "$$mark"
	log=$$venv/setup.log
	quietly() {
		if ! "$$@" >>"$$log" 2>&1; then
			grep -v '^Ignoring ' "$$log" | tail -n 20 >&2
			say "The set-up has failed; the lines above say why, and $$log has them all. Run make again once it is mended."
			exit 75
		fi
	}
	pip() { quietly "$$venv/bin/python" -m pip --disable-pip-version-check --no-input "$$@"; }
	say "Setting up $$venv with Python 3.$$minor (once, $(SIZE))"
	say "  1/3 an empty environment"
	quietly "$$python" -m venv "$$venv"
	say "  2/3 the packages of $$lock$${beside:+ and $$beside}"
	pip install --require-hashes --only-binary :all: --requirement "$$lock"
	if [ -n "$$beside" ]; then pip install --only-binary :all: --requirement "$$beside"; fi
	say "  3/3 mvla-daemon itself"
	pip install --no-deps --no-build-isolation --editable .
	pip check
	echo "$$stamp" >"$$mark"
