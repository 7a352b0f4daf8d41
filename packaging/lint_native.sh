#!/bin/bash
# Looks for faults in the C and C++ of a package (.clang-tidy says which). Usage: lint_native.sh BIN PACKAGE
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$1 package=$2 build=build/lint/$2
mkdir -p "$build"

"$bin/cmake" -S "packages/$package" -B "$build" -DCMAKE_BUILD_TYPE=Debug -DCMAKE_EXPORT_COMPILE_COMMANDS=ON \
  -DPython3_EXECUTABLE="$PWD/$bin/python" -Wno-dev --no-warn-unused-cli > "$build.log" 2>&1 ||
  { cat "$build.log"; exit 1; }

# Few files at a time, so that all cores are busy to the end. What a file has to say comes out in one piece.
"$bin/python" - "$build/compile_commands.json" << 'EOF' |
import json, sys
print(*sorted({command["file"] for command in json.load(open(sys.argv[1]))}), sep="\n")
EOF
  xargs --max-procs="$(nproc)" --max-args=4 "$bin/clang-tidy" --quiet -p "$build" 2>&1 |
  sed '/Processing file .*\.$/d'
