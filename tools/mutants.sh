#!/usr/bin/env bash
# Mutate one module, in a copy of the last commit, and show which mutants its tests do not notice.
#
#   pip install cosmic-ray
#   tools/mutants.sh bench/claims/verdict.py tests/claims/test_verdict.py
#
# A mutant that survives is a test that is missing, or a change that changes nothing (`a < b` for `a <= b` where the two
# are never equal). Binary operators are left alone: cosmic-ray takes the bar in `int | None` for one.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
module=${1:?name a module} && shift
tests=${*:?name the tests that guard it}
python=$root/.venv/bin/python
command -v cosmic-ray >/dev/null || { echo "There is no cosmic-ray: pip install cosmic-ray." && exit 2; }

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git -C "$root" archive HEAD | tar -x -C "$copy"
cd "$copy"
export PYTHONPATH=$copy/src:$copy PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
cat > mutants.toml <<TOML
[cosmic-ray]
module-path = "$module"
timeout = 60.0
excluded-modules = []
test-command = "$python -m pytest -q -x -p no:cacheprovider $tests"
[cosmic-ray.distributor]
name = "local"
[cosmic-ray.filters.operators-filter]
exclude-operators = ["core/ReplaceBinaryOperator_.*", "core/.*Unary.*", "core/ExceptionReplacer", "core/RemoveDecorator"]
TOML
cosmic-ray init mutants.toml mutants.sqlite
cr-filter-operators mutants.sqlite mutants.toml
cosmic-ray exec mutants.toml mutants.sqlite
cr-report --show-diff --surviving-only mutants.sqlite
