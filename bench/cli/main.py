"""The command `prunebench`: its verbs, and how it reports a user's mistake."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from prunebench.bench.cli import board, claims, pruners, run, score
from prunebench.bench.errors import PrunebenchError

# In the order of --help. Importing torch takes seconds, so only the verbs that need it import it.
VERBS: dict[str, Callable[..., None]] = {
    "run": run.run,
    "plan": run.plan,
    "train": run.train,
    "score": score.score,
    "import": score.import_,
    "inspect": score.inspect,
    "rank": board.rank,
    "sign": board.sign,
    "site": board.site,
    "compare": score.compare,
    "claim": claims.claim,
    "verify": claims.verify,
    "new": pruners.new,
    "check": pruners.check,
    "list": pruners.list_,
    "doctor": pruners.doctor,
}

app = typer.Typer(
    help="Benchmark adversarially robust, pruned networks: train, prune, score with AutoAttack, rank.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for name, verb in VERBS.items():
    app.command(name)(verb)


def main() -> None:
    """Run the command; a user's mistake ends in one sentence and exit code 1."""
    try:
        app()
    except PrunebenchError as error:
        print(f"prunebench: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # a path that the file system rejects, such as one of a thousand letters
        if error.filename is None:
            raise
        reason = PrunebenchError(f"Cannot use {error.filename} ({error.strerror}); name another path.")
        print(f"prunebench: {reason}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
