#!/usr/bin/env bash
# A day with a single NVIDIA GPU: `bash experiments/gpu_check.sh OUT`, eight minutes at
# most. Downloads nothing; needs jax with CUDA and `pip install -e '.[test]'`.
#
# Each part has a limit of its own and goes on after a failure; the last line says how
# many failed. A part that no GPU can take ends with its reason in its file in OUT.
# `SMALL=1` runs all parts on small models, which is how they are tried on a CPU.
#
# It has not run on a GPU yet.
set -uo pipefail
out=${1:?give a folder for the results}
mkdir -p "$out"
failed=0

part() {
  local limit=$1 name=$2 start=$SECONDS status=0
  shift 2
  timeout "$limit" "$@" >"$out/$name.txt" 2>&1 || status=$?
  [ "$status" = 0 ] || failed=$((failed + 1))
  echo "== $name: status $status, $((SECONDS - start)) s"
}

small=()
cases="vmap"
if [ -n "${SMALL:-}" ]; then
  small=(--models transformer --model-width 8 --sequences 1 --repeats 2 --seconds 0)
  cases="vmap and overwriting"
fi

part 20 driver nvidia-smi
part 30 versions_and_flags python -m cocod_jax
# One GPU holds all workers by vmap; the other mapping transforms need one for each.
part 110 tests python -m pytest -q -p no:cacheprovider tests/test_contract.py \
  tests/test_streamed.py -k "$cases"
# Ratios to the plain optimizer's step, and memory beside the state.
part 120 streamed_step python -m experiments.streamed_step --out "$out/streamed_step" \
  "${small[@]}"
# For eight of this very GPU. Status 1 is a verdict: not all communication is hidden.
# This machine's compiler for this machine's GPU, where one worker has nobody to send to;
# then the same for eight such GPUs. Status 1 is a verdict: not all is hidden.
certify() {
  part 65 "certificate_$1" python -m cocod_jax.certify experiments.train "${@:2}"
}
certify here --devices 1
kind=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null |
  grep -oiE 'h200|h100|a100|v100' | head -n 1)
certify whole --target "${kind:-h100}" --algorithm cocod
certify streamed --target "${kind:-h100}" --algorithm streamed --compiler-options
echo "$failed failed; everything is in $out"
[ "$failed" = 0 ]
