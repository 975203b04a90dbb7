#!/usr/bin/env bash
# Makes an environment with fMRIPrep, sMRIPrep and niworkflows from PyPI beside this package, for
# the test that builds our workflows into their graphs (tests/e2e/test_embedding.py):
#
#   export LACUNA_TEST_FMRIPREP=$(scripts/embedding-environment.sh [DIR])
#
# DIR is build/embedding unless given; 1.3 GB. Prints the interpreter's path, and nothing else, to
# the standard output. An environment that is complete is used again. PYTHON names the interpreter
# to build on; it must be one for which fMRIPrep's dependencies have wheels (3.10 to 3.13).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
directory=${1:-$root/build/embedding}
python=$directory/bin/python
wanted=$(cksum <"$root/pyproject.toml")

if [[ ! -f $directory/complete || $(<"$directory/complete") != "$wanted" ]]; then
    printf 'Installing fmriprep into %s (about a minute and a half) ...\n' "$directory" >&2
    rm -rf "$directory"
    "${PYTHON:-python3}" -m venv "$directory" >&2
    # One call, so that pip finds versions that suit both.
    "$python" -m pip --disable-pip-version-check --no-input --quiet \
        install --use-pep517 fmriprep --editable "$root" </dev/null >&2
    printf '%s\n' "$wanted" >"$directory/complete"
fi
printf '%s\n' "$(realpath "$directory")/bin/python"
