#!/bin/sh
# usage: sh tools/install.sh demo|test    finds a Python, checks the machine, installs into .venv once
set -u
what=$1

if [ -x .venv/bin/python ] && .venv/bin/python tools/install.py --done "$what" 2>/dev/null; then
    exit 0
fi

# The first of these that is new enough and complete; a shim (pyenv) may be there and not run.
names="${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14"
for needs in "sys.version_info >= (3, 11) and os.path.exists(os.path.join(include, 'Python.h'))" \
             "sys.version_info >= (3, 11)" "sys.version_info >= (3, 8)"; do
    for name in $names; do
        if "$name" -c "import os, sys, sysconfig, venv; include = sysconfig.get_paths()['include']; sys.exit(not ($needs))" 2>/dev/null; then
            "$name" tools/preflight.py "$what" || exit 1
            exec "$name" tools/install.py "$what"
        fi
    done
done
echo "orchd: no Python found. Install Python 3.11 or newer: apt install python3 python3-venv python3-dev, dnf install python3-devel, or brew install python@3.13." >&2
exit 1
