#!/usr/bin/env bash
# Everything that only a CUDA device can show, in one command and one report: the tests of tests/hardware, what the
# engine costs beside the network, and, where TensorRT is (a Jetson), engine, comparison and benches of the policy.
#   scripts/verify_on_gpu.sh [CONFIG] [FOLDER]      (config.toml, build/gpu; PYTHON may name another interpreter)
set -uo pipefail
cd "$(dirname "$0")/.."
config=${1:-config.toml}
out=${2:-build/gpu}
python=${PYTHON:-.venv/bin/python}
daemon=("$python" -m mvla_daemon --config "$config" --set 'policy.backend="tensorrt"')

if ! "$python" -c 'import pycuda.driver as d; d.init()' 2>/dev/null; then
    echo "verify_on_gpu.sh: $python cannot use a CUDA device (pycuda and a driver are needed): see 'TensorRT' in README.md." >&2
    exit 69
fi
mkdir -p "$out"
report=$out/report.md
worst=0

section() { # TITLE COMMAND...: its output in the report, its exit code in the summary
    local title=$1 rc=0
    shift
    echo "== $title"
    printf '\n## %s\n\n```\n' "$title" >>"$report"
    "$@" 2>&1 | tee -a "$report" || rc=$?
    printf '```\n\n%s\n' "$([ "$rc" = 0 ] && echo holds || echo "FAILED (exit code $rc)")" >>"$report"
    [ "$rc" = 0 ] || worst=1
}

{
    echo "# $("$python" -c 'import pycuda.driver as d; d.init(); print(d.Device(0).name())'), $(date -u +%Y-%m-%d)"
    echo
    echo "mvla-daemon $(git describe --always --dirty 2>/dev/null), Linux $(uname -rm)"
} >"$report"
section "Versions" "$python" - <<'PYTHON'
import importlib, sys
import pycuda.driver as driver
driver.init()
print("Python", sys.version.split()[0])
print("CUDA in the driver", driver.get_driver_version())
for name in ("numpy", "onnxruntime", "pycuda", "cuda.bindings", "tensorrt", "tensorrt_lean_bindings"):
    try:
        print(name, getattr(importlib.import_module(name), "__version__", "of unknown version"))
    except ImportError as error:
        print(name, "is not here:", error)
PYTHON
section "Tests on the device" "$python" -m pytest tests/hardware -ra -q
section "What the engine costs beside the network" "$python" -m tests.hardware.measure --out "$out"
if "$python" -c 'import tensorrt' 2>/dev/null; then
    section "The policy's engine: built, compared" "${daemon[@]}" build-engine
    section "Which engine, and why" "${daemon[@]}" build-engine --explain
    section "FP32 against FP16 on each engine" "${daemon[@]}" bench --policies configured --out "$out"
    section "The whole daemon at its rate" "${daemon[@]}" bench --seconds 30
else
    printf '\nTensorRT is not here, so that no engine was built.\n' >>"$report"
fi
echo "The report: $report"
exit "$worst"
