#!/usr/bin/env bash
# onnxruntime 1.32.0: importing it writes an identifier of the machine and a database below the cache folder.
#
# `import onnxruntime`, without a session or a model, makes Microsoft/DeveloperTools/.onnxruntime/deviceid and
# onnxruntime.db below $XDG_CACHE_HOME (~/.cache where that is not set): an id that is the same for all programs of the
# user, and a queue of events. Nothing asks before, and nothing is printed. A read-only home or a check that a program
# writes nothing outside its folder meets it.
# Seen on Linux, Python 3.11, with an empty home: both files there after the import.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime==1.32.0 2>/dev/null
mkdir "$folder/home"
env -u XDG_CACHE_HOME HOME="$folder/home" "$folder/venv/bin/python" -c 'import onnxruntime; print(onnxruntime.__version__)'
(cd "$folder/home" && find . -type f | sort | tee "$folder/found")
grep -q '/deviceid$' "$folder/found"
grep -q '/onnxruntime.db$' "$folder/found"
