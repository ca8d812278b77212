#!/usr/bin/env bash
# All that needs a GPU, in one go and in under 9 minutes: build, tests, compute-sanitizer, speed.
#
#   benchmarks/gpu_check.sh [FOLDER]     results go to FOLDER (benchmarks/results/gpu if not given)
#
# Needs nvcc, CMake, and a Python with torch (CUDA), pybind11, scikit-build-core, pytest and
# hypothesis; no network. RESFED_DATA may name a folder with fedavg_cnn.npz.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/gpu}
python=${PYTHON:-python3}
mkdir -p "$out"
begin=$SECONDS
summary=()

# step NAME SECONDS COMMAND...: runs it with a limit, keeps its output, notes how it ended.
step() {
  local name=$1 limit=$2
  shift 2
  local started=$SECONDS
  echo "== $name"
  if timeout "$limit" "$@" > "$out/$name.log" 2>&1; then
    summary+=("ok      $name, $((SECONDS - started)) s: $(tail -n 1 "$out/$name.log")")
  else
    summary+=("FAILED  $name (status $?), $((SECONDS - started)) s: $(tail -n 1 "$out/$name.log")")
    tail -n 15 "$out/$name.log"
  fi
}

site=$(mktemp -d)
architecture=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
step build 150 "$python" -m pip install --no-index --no-deps --no-build-isolation --quiet \
  --target "$site" -C cmake.define.RESFED_CUDA=ON -C cmake.define.RESFED_WERROR=ON \
  -C cmake.define.CMAKE_CUDA_ARCHITECTURES="$architecture" .
export PYTHONPATH=$site
step available 60 "$python" -c '
import resfed_codec as rfc
assert rfc.cuda_available(), rfc._native.cuda_unavailable_reason()
print("CUDA available")'
step tests 150 "$python" -m pytest -q -m cuda -p no:cacheprovider -o filterwarnings=default tests
if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck synccheck; do
    step "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
      "$python" -m pytest -q -p no:cacheprovider -o filterwarnings=default tests/test_device_codec.py \
      -k "around_tiles and 4097 or around_slices and 2049 or damaged or more_equal and 0.4"
  done
else
  summary+=("left out: compute-sanitizer is not installed")
fi
snapshots=()
[ -n "${RESFED_DATA:-}" ] && snapshots=(--snapshots "$RESFED_DATA/fedavg_cnn.npz")
step speed 240 "$python" -m benchmarks.gpu --out "$out" "${snapshots[@]}"

echo
grep -hE '^\| (model|CNN|synthetic)' "$out/gpu.md" 2> /dev/null | cut -c1-150
printf '%s\n' "${summary[@]}" "$((SECONDS - begin)) s in all; logs and JSON in $out"
case "${summary[*]}" in *FAILED*) exit 1 ;; esac
