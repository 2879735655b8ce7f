#!/usr/bin/env bash
# On a Jetson, once: an environment in .venv that uses JetPack's own TensorRT and OpenCV, with pycuda built for its CUDA.
#   scripts/setup_jetson.sh [FOLDER]        (FOLDER instead of .venv; PYTHON and CUDA_HOME may say where those are)
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
python=${PYTHON:-/usr/bin/python3}
cuda=${CUDA_HOME:-/usr/local/cuda}

refuse() {
    echo "setup_jetson.sh: $1" >&2
    exit 69
}
[ -x "$python" ] || refuse "there is no $python: install it with 'sudo apt install python3', or name it with PYTHON=."
"$python" -c 'import tensorrt' 2>/dev/null ||
    refuse "$python has no tensorrt: install JetPack's with 'sudo apt install nvidia-jetpack' or 'python3-libnvinfer'."
"$python" -c 'import cv2' 2>/dev/null ||
    refuse "$python has no cv2: install JetPack's OpenCV with 'sudo apt install nvidia-jetpack' or 'python3-opencv'."
[ -x "$cuda/bin/nvcc" ] || refuse "there is no $cuda/bin/nvcc: install it with 'sudo apt install nvidia-jetpack', or name CUDA_HOME=."
"$python" -c 'import ensurepip, venv' 2>/dev/null || refuse "$python has no venv: install 'python3-venv'."
"$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
    refuse "$python has no headers, which pycuda is compiled with: install 'python3-dev'."
[ ! -e "$venv" ] || refuse "$venv is there already: remove it, or name another folder."

"$python" -m venv --system-site-packages "$venv"
# JetPack's OpenCV is compiled for numpy 1, and numpy 2 cannot load it. The other versions are the locked ones.
locked=$(mktemp)
trap 'rm -f "$locked"' EXIT
sed -n 's/^\([a-z].*==.*[^ ]\) *\\$/\1/p' requirements.robot.lock | grep -v '^numpy==\|^opencv-' >"$locked"
PATH="$cuda/bin:$PATH" CUDA_HOME="$cuda" "$venv/bin/python" -m pip --disable-pip-version-check install \
    --constraint "$locked" 'numpy<2' '.[jetson]'
"$venv/bin/python" -c 'import cv2, tensorrt; print(f"OpenCV {cv2.__version__} and TensorRT {tensorrt.__version__} are there.")'
echo "Now copy systemd/config.robot.toml, set camera, port, limits and policy.backend = \"tensorrt\" in it, and go on with"
echo "  $venv/bin/mvla-daemon --config config.robot.toml build-engine"
