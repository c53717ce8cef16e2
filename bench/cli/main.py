"""The command `prunebench`: its verbs, and how it reports a user's mistake or an interruption."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer

from prunebench.bench.cli import board, claims, doctor, pruners, run, score, train, watch
from prunebench.bench.cli.examples import epilog
from prunebench.bench.errors import PrunebenchError, printable

# In the order of --help. Importing torch takes seconds, so only the verbs that need it import it.
VERBS: dict[str, Callable[..., None]] = {
    "run": run.run,
    "plan": run.plan,
    "train": train.train,
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
    "doctor": doctor.doctor,
}
_Misuse: Any = typer.BadParameter.__base__  # of all errors about the words of a command; typer does not export it
RESUMES = ("run", "train", "score")  # what these have finished is kept, and the same command goes on from there

app = typer.Typer(
    help="Benchmark adversarially robust, pruned networks: train, prune, score with AutoAttack, rank.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"prunebench {version('prunebench')}")
        raise typer.Exit


@app.callback()
def _common(
    wanted: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Without a docstring of its own, the group's help is that of `app`."""


def _watched(name: str, verb: Callable[..., None]) -> Callable[..., None]:
    """`verb`, with a spinner on a terminal until it has something to show, and a way on after an interruption."""

    @functools.wraps(verb)
    def watched(**options: Any) -> None:
        if not options.get("quiet"):
            watch.start_waiting(f"prunebench {name}: starting")
        try:
            verb(**options)
        except KeyboardInterrupt:
            again = printable(shlex.join(["prunebench", *sys.argv[1:]]))
            way_on = "nothing is left half-done; the same command begins again"
            if name in RESUMES or (name == "verify" and options.get("out") is not None):
                way_on = "what is finished is kept; the same command goes on from there"
            elif options.get("write"):  # rank writes log, ledger and tables one after the other
                way_on = "what is written stays; the same command writes the rest"
            watch.say(f"prunebench: stopped; {way_on}: {again}")
            raise typer.Exit(130) from None
        finally:
            watch.stop_waiting()

    return watched


for name, verb in VERBS.items():
    app.command(name, epilog=epilog(name))(_watched(name, verb))


def _misuse(error: Any) -> str:
    """What to say about a command line that cannot be parsed; one without any word asks for help."""
    said, context = error.format_message().replace("Value error, ", ""), error.ctx
    if context and said == context.get_help():
        return str(said)
    if said.startswith("Got unexpected extra argument"):
        said += "; write several values with commas, and quote a value that holds spaces"
    see = " See" if said.endswith("?") else "; see"
    return f"prunebench: {printable(said.rstrip('.'))}{see} {context.command_path if context else 'prunebench'} -h."


def main() -> None:
    """Run the command; a user's mistake ends in one sentence and exit code 1, or 2 if the words cannot be parsed."""
    try:
        sys.exit(app(prog_name="prunebench", standalone_mode=False))
    except _Misuse as error:
        watch.say(_misuse(error))
        sys.exit(error.exit_code)
    except PrunebenchError as error:
        watch.say(f"prunebench: {error}")
        sys.exit(1)
    except OSError as error:  # a path that the file system rejects, such as one of a thousand letters
        if error.filename is None:
            raise
        reason = PrunebenchError(f"Cannot use {error.filename} ({error.strerror}); name another path.")
        watch.say(f"prunebench: {reason}")
        sys.exit(1)


if __name__ == "__main__":
    main()
