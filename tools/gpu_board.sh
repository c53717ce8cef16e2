#!/usr/bin/env bash
# From a bare CUDA machine with torch and this source, without a network: the tests marked gpu, a table of measurements,
# and as much of a grid as fits a time limit.
#
#   tools/gpu_board.sh --out DIR [--wheels DIR] [--from FILE] [--pack FILE [--volume MIB]] [OPTIONS] PROTOCOL [RUN OPTIONS]
#
# --wheels DIR holds the wheels of the packages that the machine lacks; they may as well be carried on PYTHONPATH.
# --pack FILE writes --out without the stages of training as FILE.000, FILE.001, ... of at most --volume MiB (15), also
# when the call is cut off; --from FILE takes what --out lacks from them. The other options are those of
# tools/gpu_board.py (--help).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}

out='' wheels='' from='' pack='' volume=15 rest=()
while (($#)); do
    case $1 in
        --out) out=${2:?--out needs a folder} && rest+=("$1" "$2") && shift 2 ;;
        --wheels) wheels=${2:?--wheels needs a folder} && shift 2 ;;
        --from) from=${2:?--from needs a pack} && shift 2 ;;
        --pack) pack=${2:?--pack needs a file} && shift 2 ;;
        --volume) volume=${2:?--volume needs MiB} && shift 2 ;;
        *) rest+=("$1") && shift ;;
    esac
done
if [ -n "$from" ]; then
    mkdir -p "${out:?--out DIR says where everything goes}"
    if ! cat "$from".??? | gzip -t; then
        echo "$from.000 and on are no complete pack: bring all volumes again, or leave --from out." >&2
        exit 2
    fi
    cat "$from".??? | tar -xz --skip-old-files -C "$out"
fi
if [ -n "$wheels" ]; then
    site=${out:?--out DIR says where everything goes}/site
    "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$site" "$wheels"/*.whl
    PYTHONPATH=$(cd "$site" && pwd)${PYTHONPATH:+:$PYTHONPATH}
fi
for room in bench pruners leaderboard; do # a copy of the checkout may have lost its links
    [ -e "$root/src/prunebench/$room" ] || ln -s "../../$room" "$root/src/prunebench/$room"
done
export PYTHONPATH=$root/src:$root${PYTHONPATH:+:$PYTHONPATH}
"$python" "$root/tools/gpu_board.py" "${rest[@]}" &
board=$! status=0
trap 'kill "$board" 2>/dev/null' TERM INT
wait "$board" || status=$?
wait "$board" 2>/dev/null || true # a signal ends the first wait before the board
if [ -n "$pack" ] && [ -d "$out" ]; then
    trap '' TERM INT
    mkdir -p "$(dirname "$pack")"
    rm -f "$pack".???
    tar -cz --exclude=./runs/stages --exclude=./registered --exclude=./site -C "$out" . |
        split -b "${volume}M" -d -a 3 - "$pack."
    echo "packed: $(echo "$pack".???)"
fi
exit "$status"
