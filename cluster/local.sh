#!/usr/bin/env bash
# A real Ray cluster of N nodes on this machine: see cluster/README.md, or `cluster/local.sh --help`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
python=${PYTHON:-$here/../.venv/bin/python}
command -v "$python" >/dev/null || python=python3
exec "$python" "$here/local.py" "$@"
