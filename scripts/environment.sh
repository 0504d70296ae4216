# Sourced by the scripts beside it: makes .venv and installs this project into it.
#
#   ensure_environment FOLDER EXTRAS   FOLDER: a virtual environment; EXTRAS: "[dev]", "[build]" or ""
#
# The install is repeated only when pyproject.toml or the interpreter changed since the last one.

python_fits() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (4,))' \
        >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.14; do
        if python_fits "$candidate"; then
            command -v "$candidate"
            return 0
        fi
    done
    {
        echo "No usable Python: looked for python3 and python3.11 to python3.14 on PATH;"
        echo "found none that is 3.11 or newer and has the modules venv and ensurepip."
        echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv),"
        echo "or name it: PYTHON=/path/to/python3.12 $0"
    } >&2
    return 3
}

quietly() {
    local log
    log=$(mktemp)
    if "$@" >"$log" 2>&1; then
        rm -f "$log"
    else
        local code=$?
        cat "$log" >&2
        rm -f "$log"
        echo "failed: $*" >&2
        return "$code"
    fi
}

ensure_environment() {
    local folder=$1 extras=$2 python stamp wanted
    # An environment with the development tools also serves those who need less.
    if [ "$extras" = "[build]" ] && [ -f "$folder/installed-dev" ]; then
        extras="[dev]"
    fi
    if ! python_fits "$folder/bin/python"; then
        python=$(find_python) || return $?
        echo "making $folder with $("$python" -V)" >&2
        quietly "$python" -m venv --clear "$folder" || return $?
    fi
    stamp="$folder/installed-$(echo "$extras" | tr -dc 'a-z,')"
    wanted=$("$folder/bin/python" - pyproject.toml <<'PYTHON'
import hashlib, pathlib, sys

text = pathlib.Path(sys.argv[1]).read_bytes() + sys.version.encode()
print(hashlib.sha256(text).hexdigest(), pathlib.Path.cwd())
PYTHON
    )
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "installing enginefarm$extras into $folder" >&2
        quietly "$folder/bin/python" -m pip install --disable-pip-version-check -q \
            -e ".$extras" || return $?
        printf '%s\n' "$wanted" >"$stamp"
    fi
}
