#!/usr/bin/env bash
# Makes requirements.lock anew from pyproject.toml: one file of pinned versions and hashes for every supported Python
# and machine. What a robot needs of them is in requirements.robot.lock too, and in requirements.export.lock is what
# exporting and training need beside that, without PyTorch. It needs uv (`pip install uv`), or UV=/path/to/uv. Versions
# that are locked already stay where they are:
#   make lock                                everything stays that still fits pyproject.toml
#   make lock ARGS=--upgrade                 everything becomes the newest
#   make lock ARGS='--upgrade-package onnx'  one package does
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-uv}
if ! command -v "$uv" >/dev/null; then
    echo "lock.sh needs uv: install it with 'pip install uv', or say where it is with UV=/path/to/uv." >&2
    exit 69
fi
# The project itself is installed without build isolation, so what builds it is locked as well.
build_requires=$(sed -n 's/^requires = \["\(.*\)"\]$/\1/p' pyproject.toml)
compile() { # OUTPUT OPTION...
    local output=$1
    shift
    printf '%s\n' "${build_requires:?pyproject.toml: build-system.requires is not one line with one package}" "${more[@]}" |
        "$uv" pip compile --no-config --quiet --universal --python-version 3.10 --generate-hashes \
            --no-annotate --custom-compile-command 'make lock' --output-file "$output" "$@" pyproject.toml - >/dev/null
    echo "$output pins $(grep -c '^[a-z].*==' "$output") packages"
}
more=()
compile requirements.lock --extra opencv --extra dev "$@"
compile requirements.robot.lock --extra opencv --constraint requirements.lock
# PyTorch has two builds of each version, with CUDA (gigabytes) and without; which one it is, the user's index decides,
# so it has a pinned version (requirements.torch.txt) but no hash here. What both of its builds need is locked.
more=(filelock fsspec jinja2 networkx sympy typing-extensions)
compile requirements.export.lock --extra opencv --extra dev --extra export --extra train \
    --constraint requirements.lock --override <(echo "torch; python_version < '0'") "$@"
