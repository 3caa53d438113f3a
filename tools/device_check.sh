#!/usr/bin/env bash
# Checks portable-1 and native-1 on a machine with an NVIDIA GPU, nvcc, a C++ compiler, cmake, ninja and
# a python3 with torch, transformers, numpy and blake3. Needs no network and installs nothing.
#
#   bash tools/device_check.sh OUT
#
# OUT gets report.txt, results.json and logs. The exit status is 0 only when every check passed.
set -u
cd "$(dirname "$0")/.."
out=${1:?usage: bash tools/device_check.sh OUT}
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONHASHSEED=0 CUBLAS_WORKSPACE_CONFIG=:4096:8
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false
exec python3 tools/device_check.py all --out "$out"
