#!/usr/bin/env bash
# From a bare CUDA machine with torch and this source, without a network: the tests marked gpu, a table of measurements,
# and as much of a grid as fits a time limit.
#
#   tools/gpu_board.sh --out DIR [--wheels DIR] [OPTIONS] PROTOCOL [OPTIONS OF `prunebench run`]
#
# --wheels DIR holds the wheels of the packages that the machine lacks; they may as well be carried on PYTHONPATH.
# All other options are those of tools/gpu_board.py (--help).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}

out='' wheels='' rest=()
while (($#)); do
    case $1 in
        --out) out=${2:?--out needs a folder} && rest+=("$1" "$2") && shift 2 ;;
        --wheels) wheels=${2:?--wheels needs a folder} && shift 2 ;;
        *) rest+=("$1") && shift ;;
    esac
done
if [ -n "$wheels" ]; then
    site=${out:?--out DIR says where everything goes}/site
    "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$site" "$wheels"/*.whl
    PYTHONPATH=$(cd "$site" && pwd)${PYTHONPATH:+:$PYTHONPATH}
fi
for room in bench pruners leaderboard; do # a copy of the checkout may have lost its links
    [ -e "$root/src/prunebench/$room" ] || ln -s "../../$room" "$root/src/prunebench/$room"
done
export PYTHONPATH=$root/src:$root${PYTHONPATH:+:$PYTHONPATH}
exec "$python" "$root/tools/gpu_board.py" "${rest[@]}"
