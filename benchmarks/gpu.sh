#!/bin/sh
# Check, measure and adapt on one GPU without a network, in at most 9 minutes:
#   benchmarks/gpu.sh pack    where there is a network: pretrained weights into build/gpu-weights.npz, 58 MB
#   benchmarks/gpu.sh run     on the machine with the GPU: figures.json and weights in build/gpu
# PYTHON names an interpreter with torch, numpy, pillow and safetensors.
set -eu
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
"$PYTHON" -c 'import numpy, PIL, safetensors, torch' || {
    echo "error: $PYTHON lacks torch, numpy, pillow or safetensors: install them, or name another with PYTHON=" >&2
    exit 2
}
export CUBLAS_WORKSPACE_CONFIG="${CUBLAS_WORKSPACE_CONFIG:-:4096:8}"
exec "$PYTHON" -m benchmarks.gpu "$@"
