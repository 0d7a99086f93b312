#!/usr/bin/env bash
# How long a newcomer waits: `bash experiments/first_steps.sh REPOSITORY`.
#
# In a new folder, with the commands of the README: the first trained model, the first
# certificate, and the rule of docs/how-to/own-rule.md with a certificate of it.
# Installation counts; reading and writing do not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git clone -q "$1" "$folder/clone"
cd "$folder/clone"

step() {
  local name=$1 start=$SECONDS
  shift
  echo "\$ $*"
  bash -c "$*"
  echo "== $name: $((SECONDS - start)) s"
}

own_rule() {
  # The first block of Python on the page.
  awk '/^```python/ {inside = 1; next} /^```/ && inside {exit} inside' docs/how-to/own-rule.md
  cat <<'PYTHON'

from cocod_jax.certify import certify

print(certify(round_, state, targets, target="h100"))
PYTHON
}

step "first trained model" "python3 -m venv .venv && .venv/bin/pip install -q -e '.[experiments]' && .venv/bin/python -m experiments.train"
step "the compiler for the certificate" ".venv/bin/python -m cocod_jax.certify --install"
step "first certificate" ".venv/bin/python -m cocod_jax.certify experiments.train --target h100 --devices 8 --algorithm cocod"
own_rule >own_rule.py
step "first rule of one's own" ".venv/bin/python own_rule.py"
