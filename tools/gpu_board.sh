#!/usr/bin/env bash
# From a bare CUDA machine with torch and this source, without a network: a first look, a table of measurements, the
# tests marked gpu, and as much of a grid as fits a time limit.
#
#   tools/gpu_board.sh --out DIR [OPTIONS] PROTOCOL [RUN OPTIONS]
#   tools/gpu_board.sh --out DIR --call N [--volumes DIR] [OPTIONS]   the parts and the grid of call N of the order
#   tools/gpu_board.sh --rehearse DIR                                 the order of calls on this CPU, with tiny sizes
#
# --wheels DIR holds the wheels of the packages that the machine lacks; they may as well be carried on PYTHONPATH.
# --volumes DIR holds files of CIFAR-10, packed with xz or not, under any names; they are unpacked to --data
# (OUT/data). --pack FILE writes --out without data and stages of training as FILE.1-records.000, ... and
# FILE.2-nets.000, ... of at most --volume MiB (15), also when the call is cut off; --from FILE takes what --out lacks
# from them. The other options are those of tools/gpu_board.py (--help).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}

out='' wheels='' from='' pack='' volume=15 volumes='' data='' rehearse='' rest=()
while (($#)); do
    case $1 in
        --out) out=${2:?--out needs a folder} && rest+=("$1" "$2") && shift 2 ;;
        --wheels) wheels=${2:?--wheels needs a folder} && shift 2 ;;
        --from) from=${2:?--from needs a pack} && shift 2 ;;
        --pack) pack=${2:?--pack needs a file} && shift 2 ;;
        --volume) volume=${2:?--volume needs MiB} && shift 2 ;;
        --volumes) volumes=${2:?--volumes needs a folder} && shift 2 ;;
        --data) data=${2:?--data needs a folder} && rest+=("$1" "$2") && shift 2 ;;
        --rehearse) rehearse=${2:?--rehearse needs a folder} && shift 2 ;;
        *) rest+=("$1") && shift ;;
    esac
done
if [ -n "$rehearse" ]; then # the third call on a machine that has only what the second one packed
    again=("$0" --tiny --volume 1 "${rest[@]}")
    for call in 1 2 3 4; do
        from=()
        [ "$call" = 3 ] && from=(--from "$rehearse/home/pack")
        machine=$rehearse/machine$((call > 2 ? call : 1))
        echo "call $call:"
        "${again[@]}" --call "$call" --out "$machine" "${from[@]}" --pack "$rehearse/home/pack"
    done
    exit
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
if [ -n "$from" ]; then
    "$python" -m tools.gpu_pack unpack "$from" "${out:?--out DIR says where everything goes}"
fi
if [ -n "$volumes" ]; then
    "$python" -m tools.gpu_volumes "$volumes" "${data:-${out:?--out DIR says where everything goes}/data}"
fi
"$python" "$root/tools/gpu_board.py" "${rest[@]}" &
board=$! status=0
trap 'kill "$board" 2>/dev/null' TERM INT
wait "$board" || status=$?
wait "$board" 2>/dev/null || true # a signal ends the first wait before the board
if [ -n "$pack" ] && [ -d "$out" ]; then
    trap '' TERM INT
    "$python" -m tools.gpu_pack pack "$pack" "$out" "$volume"
fi
exit "$status"
