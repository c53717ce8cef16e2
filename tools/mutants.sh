#!/usr/bin/env bash
# Change one module in hundreds of small ways, in a copy of the last commit, and show which changes its tests miss.
#
#   .venv/bin/pip install mutmut==3.8.1
#   tools/mutants.sh bench/claims/verdict.py tests/claims/test_verdict.py
#
# PYTHON names another interpreter that has mutmut, MUTANTS the mutants to repeat ("*keep_largest*"). docs/mutants.md says
# what was found. mutmut imports torch once, forks one process per mutant, and runs only the tests that call the changed
# function, so a mutant takes about a second. Constants and decorated functions stay as they are; `@cache` is removed
# from the copy, so that functions below it count.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
module=${1:?name a module} && shift
: "${1:?name the tests that guard it}"
python=${PYTHON:-$root/.venv/bin/python}
"$python" -c "import mutmut" || { echo "There is no mutmut: $python -m pip install mutmut." && exit 2; }

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git -C "$root" archive HEAD | tar -x -C "$copy"
cd "$copy"
for room in bench pruners leaderboard; do # mutmut derives a module's name from its path, so the links turn round
    rm "src/prunebench/$room"
    mv "$room" "src/prunebench/$room"
    ln -s "src/prunebench/$room" "$room"
done
sed -i '/^@cache$/d' "src/prunebench/$module"
tests=$(printf '"%s", ' "$@")
cat >> pyproject.toml <<TOML
[tool.mutmut]
source_paths = ["src"]
only_mutate = ["src/prunebench/$module"]
also_copy = ["claims", "docs", "tools", "README.md", "Makefile"]
pytest_add_cli_args = ["-p", "no:cacheprovider", "--hypothesis-seed=0"]
pytest_add_cli_args_test_selection = [$tests]
process_isolation = "forkserver"
timeout_constant = 60.0
use_git_change_detection = false
TOML
export PYTHONPATH=$copy/mutants/src:$copy/mutants PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
mkdir -p mutants/src # before Python starts, which would remember that there is no such folder
for room in bench pruners leaderboard; do ln -s "src/prunebench/$room" "mutants/$room"; done
"$python" -m mutmut run --max-children 1 ${MUTANTS:-} > run.log 2>&1 || { tail -n 30 run.log && exit 1; }
"$python" -m mutmut results --all true | sort -V > results.txt
while IFS=': ' read -r name verdict; do
    case $verdict in
        killed | "not checked") ;;
        "no tests") echo "== $name: no tests" ;;
        *) echo "== $name: $verdict" && "$python" -m mutmut show "$name" | grep -E '^[-+] ' || true ;;
    esac
done < results.txt
sed 's/.*: //' results.txt | sort | uniq -c
