#!/usr/bin/env bash
# Everything that needs a GPU, in parts that end within LIMIT seconds each. If GPU time is short, give each part its
# own limit: LIMIT=330 ... build; LIMIT=200 ... test. After an edit of csrc, build again.
#
#   benchmarks/gpu_check.sh build      installs the checkout with its CUDA kernels
#   benchmarks/gpu_check.sh test       the tests marked "cuda" (or TESTS='...', arguments of pytest)
#   benchmarks/gpu_check.sh sanitize   compute-sanitizer on benchmarks/smoke.py
#   benchmarks/gpu_check.sh bench      ops against eager, torch.compile and a copy, and the speed goals
#   benchmarks/gpu_check.sh train      training steps of whole networks: time, bytes kept and peak memory
#   benchmarks/gpu_check.sh all        one after another
#
# A part builds first if nothing is built. Nothing is downloaded: missing packages are named. Results are written to OUT
# as they come: cuda-*.json, and gpu_check.log with all output.
#
# Variables, with their defaults: OUT (benchmarks/results), LIMIT (560), PYTHON (python3), COMMIT (unknown; names the
# commit if there is no .git).

# shellcheck disable=SC2329 # the parts are called by name
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

OUT=${OUT:-benchmarks/results}
LIMIT=${LIMIT:-560}
PYTHON=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 COMMIT=${COMMIT:-unknown}
# Nothing begins with fewer seconds left than this.
LEAST=20
mkdir -p "$OUT" || exit 2
OUT=$(cd "$OUT" && pwd)
LOG=$OUT/gpu_check.log
SUMMARY=()
failed=0

say() { echo "$*" | tee -a "$LOG"; }

note() { # part, verdict
  SUMMARY+=("$(printf '%-24s %s' "$1" "$2")")
  say "== $1: $2"
}

left() { echo $((LIMIT - (SECONDS - part_start))); }

# Runs a command for at most this many seconds, and no longer than the part has left; logs and prints its output.
attempt() { # name, seconds, command...
  local name=$1 most=$2 status begun=$SECONDS
  shift 2
  if [ "$(left)" -lt "$LEAST" ]; then
    note "$name" "not begun: $(left) s left of $LIMIT"
    return 3
  fi
  [ "$most" -lt "$(left)" ] || most=$(left)
  say "== $name: $*"
  timeout -k 15 "$most" "$@" 2>&1 | tee -a "$LOG"
  status=${PIPESTATUS[0]}
  case $status in
    0) note "$name" "ok, $((SECONDS - begun)) s" ;;
    124 | 137) note "$name" "CUT OFF after $most s" ;;
    *) note "$name" "FAILED with status $status, $((SECONDS - begun)) s" ;;
  esac
  [ "$status" = 0 ] || failed=1
  return "$status"
}

# Names the packages of the extras and of the build that this Python lacks or has in too old a version.
missing() {
  "$PYTHON" - <<'PYTHON'
import importlib.metadata as metadata
import re

wanted = dict.fromkeys(["pytest", "numpy", "rich", "matplotlib", "tqdm", "scikit-learn"], 0)
wanted |= {"setuptools": 77, "ninja": 1}
for name, major in wanted.items():
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        print(name)
        continue
    if int(re.match(r"\d+", found)[0]) < major:
        print(f"{name}>={major} (found {found})")
PYTHON
}

facts() {
  "$PYTHON" - <<'PYTHON'
import platform

import torch

print("python", platform.python_version(), "torch", torch.__version__, "CUDA", torch.version.cuda)
for index in range(torch.cuda.device_count()):
    properties = torch.cuda.get_device_properties(index)
    print(f"{properties.name}, {properties.major}.{properties.minor}, {properties.total_memory / 1e9:.0f} GB")
PYTHON
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu --format=csv,noheader || true
  command -v nvcc compute-sanitizer ncu || true
}

build() {
  local absent capability one
  facts 2>&1 | tee -a "$LOG"
  absent=$(missing)
  [ -z "$absent" ] || note "missing packages" "$(echo "$absent" | tr '\n' ' ')"
  # Only for the GPU of this machine, which takes a fraction of the time, unless TORCH_CUDA_ARCH_LIST is set.
  capability=$("$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())' 2>/dev/null)
  [ -z "$capability" ] || export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability}
  # The CPU's kernels for one instruction set: no test here needs the others, which take minutes to compile.
  one=${FUSEDTRICKS_INSTRUCTION_SETS:-default}
  attempt build "$LIMIT" env FUSEDTRICKS_CUDA=1 FUSEDTRICKS_INSTRUCTION_SETS="$one" \
    "$PYTHON" -m pip install --no-index --disable-pip-version-check --no-build-isolation --no-deps -v -e .
}

built() {
  "$PYTHON" -c 'import sys, fusedtricks; sys.exit("cuda" not in fusedtricks._build_info.backends)' >/dev/null 2>&1
}

need_build() {
  built || build || built
}

# The tests of TESTS, or else all of CUDA, those that only CUDA has first.
run_tests() {
  local options=(-v --tb=short --maxfail=200 --durations=10 -p no:cacheprovider)
  local own=(tests/test_cuda.py tests/test_cuda_runtime.py tests/test_cuda_streams.py)
  need_build || return 1
  attempt self-check 120 "$PYTHON" -m fusedtricks info
  attempt smoke 120 "$PYTHON" benchmarks/smoke.py
  "$PYTHON" -c 'import pytest' 2>/dev/null || {
    note test "pytest is missing: nothing more was tested"
    return 1
  }
  # So that a kernel that hangs is named and ends the run.
  "$PYTHON" -c 'import pytest_timeout' 2>/dev/null && options+=(--timeout 120 --timeout-method thread)
  "$PYTHON" -c 'import xdist' 2>/dev/null && options+=(-n "$(($(nproc) / 2))") && local -x OMP_NUM_THREADS=2
  if [ -n "${TESTS:-}" ]; then
    # shellcheck disable=SC2086 # it may hold several arguments
    attempt test "$LIMIT" "$PYTHON" -m pytest "${options[@]}" $TESTS
    return
  fi
  attempt "test of CUDA" "$LIMIT" "$PYTHON" -m pytest "${options[@]}" -m "cuda and not slow" "${own[@]}"
  attempt "test of every op" "$LIMIT" "$PYTHON" -m pytest "${options[@]}" -m "cuda and not slow" \
    "${own[@]/#/--ignore=}" tests
}

sanitize() {
  local tool_and_path tool path version
  need_build || return 1
  command -v compute-sanitizer >/dev/null || PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
  version=$(compute-sanitizer --version 2>/dev/null | grep -m1 -i version) || {
    note sanitize "compute-sanitizer is not here: nothing was checked"
    return 0
  }
  say "$version"
  # Kernels read blocks of 16 bytes, up to 14 bytes beyond the end of a tensor. Blocks of torch's allocator are long
  # enough for that, so its cache stays on: without it, memcheck would report those reads.
  attempt "smoke, unchecked" 120 "$PYTHON" benchmarks/smoke.py
  for tool_and_path in memcheck:two memcheck:hold racecheck:hold initcheck:two racecheck:two initcheck:hold \
    synccheck:hold synccheck:two; do
    tool=${tool_and_path%:*} path=${tool_and_path#*:}
    attempt "$tool, path $path" 240 env FUSEDTRICKS_CUDA_PATH="$path" \
      compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 "$PYTHON" benchmarks/smoke.py
  done
}

# One run of the benchmark; if it was cut off, the table of what it had written.
measure() { # file, seconds, arguments...
  local file=$1 most=$2 status
  shift 2
  rm -f "$OUT/$file.json"
  [ "$most" -lt $(($(left) - 60)) ] || most=$(($(left) - 60))
  if [ "$most" -lt 15 ]; then
    note "$file" "not begun: $(left) s left of $LIMIT"
    return 3
  fi
  attempt "$file" $((most + 60)) "$PYTHON" benchmarks/run.py --device cuda --deadline "$most" \
    --json "$OUT/$file.json" "$@"
  status=$?
  if [ "$status" -ge 124 ] && [ -e "$OUT/$file.json" ]; then
    "$PYTHON" benchmarks/run.py --device cuda --targets --show "$OUT/$file.json" 2>&1 | tee -a "$LOG"
  fi
  return "$status"
}

bench() {
  local layers='*/bfloat16/channels_last'
  need_build || return 1
  measure cuda-auto 180 --targets --only 'batch_norm*' --only 'dropout*' --only 'leaky_relu*' --seconds 0.4
  FUSEDTRICKS_CUDA_PATH=hold measure cuda-hold 60 --targets --only "batch_norm*$layers" --seconds 0.2
  FUSEDTRICKS_CUDA_PATH=two measure cuda-two 60 --targets --only "batch_norm*$layers" --seconds 0.2
  # The thresholds of FUSEDTRICKS_CUDA_PATH=auto are chosen by this comparison.
  [ ! -e "$OUT/cuda-hold.json" ] || [ ! -e "$OUT/cuda-two.json" ] ||
    "$PYTHON" benchmarks/compare.py "$OUT/cuda-two.json" "$OUT/cuda-hold.json" 2>&1 | tee -a "$LOG"
  # Compiling takes seconds a case.
  measure cuda-compile 120 --targets --only "batch_norm*/resnet50-256x*/forward+backward$layers" --compile --seconds 0.2
  # Cases without a goal: small, odd and flat shapes, other activations.
  measure cuda-quick 60 --quick
}

train() {
  need_build || return 1
  measure cuda-train 150 --only 'end_to_end/*' --seconds 5
  attempt cuda-memory 120 "$PYTHON" -m benchmarks.memory --device cuda --networks resnet50 mobilenet-v2 densenet121 \
    --seconds 5 --output "$OUT/cuda-memory.json"
  measure cuda-train-compile 330 --only 'end_to_end/*' --compile --seconds 5
  for file in cuda-train cuda-train-compile; do
    [ ! -e "$OUT/$file.json" ] ||
      "$PYTHON" benchmarks/run.py --device cuda --targets --show "$OUT/$file.json" 2>&1 | tee -a "$LOG"
  done
}

part() { # name, function
  part_start=$SECONDS
  say "==== $1, $(date -u +%FT%TZ)"
  "$2" || failed=1
}

case ${1:-} in
  build) part build build ;;
  test) part test run_tests ;;
  sanitize) part sanitize sanitize ;;
  bench) part bench bench ;;
  train) part train train ;;
  all)
    part build build
    part test run_tests
    part sanitize sanitize
    part bench bench
    part train train
    ;;
  *)
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac

say ""
for line in "${SUMMARY[@]}"; do say "$line"; done
exit "$failed"
