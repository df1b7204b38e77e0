#!/bin/sh
# python.sh LIST DIR - makes the Python environment DIR with the packages that the file LIST names,
# unless it is there. Nothing else on the machine changes, and nothing is compiled for it. Status 1
# where that cannot be done: DIR.log says why.
list=$1 dir=$2
cmp -s "$list" "$dir/installed" && exit 0
rm -rf "$dir"
mkdir -p "$(dirname "$dir")"
{ python3 -m venv "$dir" && "$dir/bin/python3" -m pip install -q --no-deps --only-binary :all: \
    --retries 1 -r "$list" && cp "$list" "$dir/installed"; } >"$dir.log" 2>&1
