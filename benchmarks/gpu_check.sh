#!/usr/bin/env bash
# Runs everything that needs a GPU in under 9 minutes: build, tests, speed, compute-sanitizer.
#
#   benchmarks/gpu_check.sh [--wheels FOLDER] [--snapshots FILE] [--emulated] [FOLDER]
#
# Writes results to FOLDER (default: benchmarks/results/gpu) and packs them into FOLDER.tar.gz.
#
# Needs nvcc and a Python ($PYTHON, or python3) with torch for CUDA, but no network. Installs other
# missing packages from the wheels in the folder of --wheels, except numpy and torch. To download
# the wheels on a machine with a network, for the Python version of the machine with the GPU:
#
#   pip download --only-binary=:all: --python-version 3.12 -c constraints.txt -d wheels \
#     cmake ninja pybind11 scikit-build-core pytest hypothesis ml_dtypes
#
# --snapshots names an .npz with g6 and l0_7 (default: fedavg_cnn.npz in $RESFED_DATA or in the
# checkout). Without one, models are synthetic. --emulated tries the steps without a GPU, with time
# limits five times as long.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
wheels='' snapshots='' cuda=ON limit_factor=1 out=benchmarks/results/gpu
while [ $# -gt 0 ]; do
  case $1 in
    --wheels) wheels=$2 && shift 2 ;;
    --snapshots) snapshots=$2 && shift 2 ;;
    --emulated) cuda=EMULATED limit_factor=5 && shift ;;
    -*) echo "unknown option: $1" >&2 && exit 2 ;;
    *) out=$1 && shift ;;
  esac
done
for file in "${RESFED_DATA:-.}/fedavg_cnn.npz" fedavg_cnn.npz; do
  [ -z "$snapshots" ] && [ -f "$file" ] && snapshots=$file
done
mkdir -p "$out"
begin=$SECONDS
summary=()

# step NAME SECONDS COMMAND...: runs COMMAND with a time limit, logs its output and records its exit
# status. The limits add up to 530 seconds.
step() {
  local name=$1 limit=$(($2 * limit_factor)) status=0
  shift 2
  local started=$SECONDS
  echo "== $name"
  timeout --kill-after=5 "$limit" "$@" > "$out/$name.log" 2>&1 || status=$?
  local took="$name, $((SECONDS - started)) s: $(grep . "$out/$name.log" | tail -n 1)"
  if [ $status = 0 ]; then
    summary+=("ok      $took")
  else
    summary+=("FAILED  (status $status) $took")
    tail -n 15 "$out/$name.log"
  fi
  return $status
}

# Runs at exit: prints the summary and packs the results.
finish() {
  echo
  grep -hE '^\| (model|CNN|synthetic)' "$out/gpu.md" 2> /dev/null | cut -c1-150
  printf '%s\n' "${summary[@]}" "$((SECONDS - begin)) s in all; everything is in $out.tar.gz" |
    tee "$out/summary.txt"
  tar -czf "$out.tar.gz" -C "$(dirname "$out")" "$(basename "$out")"
  rm -rf "$site"
}
site=$(mktemp -d)
trap finish EXIT

export PYTHONPATH=$site PATH=$site/bin:$PATH
carried=()
if [ -n "$wheels" ]; then
  for wheel in "$wheels"/*.whl; do
    case $(basename "$wheel") in numpy-* | torch-*) ;; *) carried+=("$wheel") ;; esac
  done
  step wheels 30 "$python" -m pip install --no-index --no-deps --quiet --target "$site" "${carried[@]}"
fi
architecture=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())' \
  2> /dev/null || echo 90)
{
  nvidia-smi
  nvcc --version
  "$python" -c 'import sys, numpy, torch; print(sys.version, numpy.__version__, torch.__version__)'
} > "$out/machine.log" 2>&1
step build 140 "$python" -m pip install --no-index --no-deps --no-build-isolation --target "$site" \
  -C build-dir="$site/cmake" -C cmake.define.RESFED_CUDA=$cuda \
  -C cmake.define.CMAKE_CUDA_ARCHITECTURES="$architecture" . || exit 1
step available 20 "$python" -c '
import resfed_codec as rfc
assert rfc.cuda_available(), rfc._native.cuda_unavailable_reason()
print("CUDA available")' || exit 1

# Names the test files: others need packages that may be missing.
pytest=("$python" -m pytest -q -p no:cacheprovider -o filterwarnings=default)
few="around_chunks and 4097 or around_lanes and 2081 or damaged or more_equal and 0.4"
if [ $cuda = EMULATED ]; then
  step tests 110 "${pytest[@]}" tests/cuda/test_cuda_errors.py tests/cuda/test_device_codec.py \
    -k "$few or test_cuda_errors"
  speed=(--device cpu --elements 400000 --turns 3)
else
  step tests 110 "${pytest[@]}" tests/cuda/test_device_{aggregate,codec,levels}.py \
    tests/cuda/test_cuda_errors.py tests/cuda/test_cuda.py tests/cuda/test_cuda_sessions.py
  speed=()
fi
[ -n "$snapshots" ] && speed+=(--snapshots "$snapshots")
step speed 130 "$python" -m benchmarks.gpu --out "$out" "${speed[@]}"
if command -v compute-sanitizer > /dev/null && [ $cuda = ON ]; then
  for tool in memcheck initcheck racecheck synccheck; do
    step "$tool" 25 compute-sanitizer --tool $tool --error-exitcode 9 --target-processes all \
      "${pytest[@]}" tests/cuda/test_device_codec.py -k "$few"
  done
else
  summary+=("left out: compute-sanitizer, which is not installed")
fi
case "${summary[*]}" in *FAILED*) exit 1 ;; esac
