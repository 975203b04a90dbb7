#!/usr/bin/env bash
# Sets up what the Makefile's targets run in: the virtual environment .venv with this package,
# and MRtrix3 where it is missing and can be installed.
#
#   scripts/setup-environment.sh test    package, test tools, MRtrix3
#   scripts/setup-environment.sh lint    package, lint tools
#   scripts/setup-environment.sh docs    package, what builds the documentation
#
# What is done is recorded in .venv/lacuna-setup and not done again until pyproject.toml changes.
# PYTHON names the interpreter to build on; without it, the first on PATH that is new enough.
set -euo pipefail
trap 'exit 130' INT
trap 'exit 143' TERM

extra=${1:?usage: setup-environment.sh test|lint|docs}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
state=.venv/lacuna-setup
PATH=${PATH//"$root/.venv/bin:"/} # an activated .venv must not be made again from itself

say() { printf '%s\n' "$*"; }

die() {
    printf 'Set-up stopped: %s\n' "$*" >&2
    exit 1
}

# One set-up at a time; the lock is this file itself, so that nothing is left behind.
if command -v flock >/dev/null; then
    exec 9<scripts/setup-environment.sh
    flock 9 || true # a file system without locks
fi

# --- System packages ------------------------------------------------------------------------

as_root=()
can_use_apt() {
    command -v apt-get >/dev/null || return 1
    if ((EUID == 0)); then
        as_root=(env)
    elif sudo -n true 2>/dev/null; then
        as_root=(sudo -n env)
    else
        return 1
    fi
}

apt_get() {
    "${as_root[@]}" DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -o DPkg::Lock::Timeout=300 "$@" </dev/null >/dev/null
}

# The lists of packages may be absent or out of date: they are fetched when an install fails.
apt_install() {
    say "Installing $1 with apt-get ..."
    apt_get install -y --no-install-recommends "$1" 2>/dev/null && return
    apt_get update && apt_get install -y --no-install-recommends "$1"
}

# --- Virtual environment --------------------------------------------------------------------

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' &>/dev/null; }

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        new_enough "$PYTHON" || die "PYTHON=$PYTHON is not a Python of version 3.10 or newer."
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3 python3.{14..10}; do
        if new_enough "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "no Python 3.10 or newer is on PATH; install one or name it: make PYTHON=/path/to/python3."
}

# Finished, still in the folder it was made for, on the interpreter it was made with.
environment_is_sound() {
    local version
    version=$(python_version .venv/bin/python) || return 1
    [[ -f $state/ready && $(<"$state/ready") == "$version $root" ]] || return 1
    [[ -z ${PYTHON:-} || $(python_version "$PYTHON") == "$version" ]]
}

make_environment() {
    local python package
    python=$(find_python)
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        package="python$(python_version "$python")-venv"
        if can_use_apt; then apt_install "$package" || true; fi
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            die "$python cannot make virtual environments; as root: apt-get install $package."
    fi
    [[ ! -e .venv ]] || say "The environment .venv is unfinished or out of date: making it again."
    "$python" -m venv --clear .venv
    mkdir "$state"
}

mark_ready() { printf '%s\n' "$(python_version .venv/bin/python) $root" >"$state/ready"; }

# An installation that was interrupted leaves no `ready`, so the next call starts afresh; one that
# pip itself gave up (no network) leaves an older, finished environment as usable as it was.
install_package() {
    local wanted was_ready=
    wanted=$(cksum <pyproject.toml)
    [[ -f $state/$extra && $(<"$state/$extra") == "$wanted" ]] && return
    [[ ! -f $state/ready ]] || was_ready=yes
    rm -f "$state/ready"
    say "Installing lacuna-nipype with its $extra tools into .venv (minutes at the first time) ..."
    if ! .venv/bin/python -m pip --disable-pip-version-check --no-input --quiet \
        install --use-pep517 --editable ".[$extra]" </dev/null; then
        [[ -z $was_ready ]] || mark_ready
        die "pip could not install the package; its reason stands above."
    fi
    printf '%s\n' "$wanted" >"$state/$extra"
    mark_ready
}

# --- MRtrix3 --------------------------------------------------------------------------------

oldest_mrtrix=3.0.3

mrtrix_is_there() {
    local banner
    banner=$(PATH="$root/.venv/bin:$PATH" tckmap -version 2>/dev/null) || return 1
    [[ $banner =~ tckmap\ ([0-9][^\ ]*) ]] || return 1
    printf '%s\n' "$oldest_mrtrix" "${BASH_REMATCH[1]}" | sort -C -V
}

find_conda() {
    local candidate
    for candidate in micromamba mamba conda "${MAMBA_EXE:-}" "${CONDA_EXE:-}"; do
        [[ -n $candidate ]] && command -v "$candidate" && return
    done
    return 1
}

# Of that prefix, only MRtrix3's own commands are linked into .venv/bin.
conda_install_mrtrix() {
    local conda=$1 program
    say "Installing MRtrix3 with ${conda##*/} into .venv/mrtrix3 ..."
    rm -rf .venv/mrtrix3
    "$conda" create --yes --quiet --prefix "$root/.venv/mrtrix3" --override-channels \
        --channel conda-forge --channel bioconda "mrtrix3>=$oldest_mrtrix" </dev/null >/dev/null ||
        return 1
    for program in .venv/mrtrix3/bin/{mr,tck}*; do
        ln -sf "../mrtrix3/bin/${program##*/}" .venv/bin/
    done
}

# A try that failed is not repeated.
install_mrtrix() {
    local conda tried=
    mrtrix_is_there && return
    [[ ! -e $state/mrtrix3-failed ]] || return 1
    if can_use_apt; then
        tried=yes
        apt_install mrtrix3 && mrtrix_is_there && return
    fi
    if conda=$(find_conda); then
        tried=yes
        conda_install_mrtrix "$conda" && mrtrix_is_there && return
    fi
    [[ -z $tried ]] || touch "$state/mrtrix3-failed"
    return 1
}

environment_is_sound || make_environment
install_package
[[ $extra == test ]] || exit 0

# Nothing needs MRtrix3 but the engine of that name and the tests that compare with it.
install_mrtrix ||
    say "MRtrix3 $oldest_mrtrix or newer is missing: structural disconnection uses the" \
        "streamline index, and the tests against MRtrix3 skip; 'apt-get install mrtrix3' or" \
        "'conda install -c conda-forge -c bioconda mrtrix3' adds it."
