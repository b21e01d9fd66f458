"""The command line: thin typed functions over the library.

Data goes to stdout, everything else to stderr; progress bars appear on a terminal only; the exit code is 0
when everything worked, 1 when something failed, 2 for a wrong call, 130 after Ctrl-C.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from contextlib import suppress
from typing import Annotated

import typer

from tubelet.cli import (
    batching,
    converting,
    data,
    evaluating,
    grounding,
    reporting,
    scoring,
    studies,
    training,
    unistg,
    unistg_proof,
    zeroshot,
)
from tubelet.errors import TubeletError

app = typer.Typer(
    name="tubelet",
    help="Find when and where: a video and a sentence go in, a tube (time span + boxes) comes out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
world_app = typer.Typer(help="The toy world: videos with exact truth.", no_args_is_help=True)
data_app = typer.Typer(help="Datasets on disk.", no_args_is_help=True)
app.add_typer(world_app, name="world")
app.add_typer(data_app, name="data")
app.add_typer(studies.ablate_app, name="ablate")
app.add_typer(zeroshot.study_app, name="study")
app.add_typer(unistg.unistg_app, name="unistg")
unistg.unistg_app.add_typer(unistg_proof.prove_training_app, name="prove-training")

app.command()(grounding.ground)
app.command()(grounding.ask)
app.command()(grounding.info)
app.command()(grounding.models)
app.command()(grounding.demo)
app.command()(batching.batch)
app.command("eval")(evaluating.evaluate)
app.command()(evaluating.merge)
app.command()(reporting.report)
app.command()(scoring.score)
app.command()(training.train)
app.command()(converting.convert)
world_app.command("make")(data.world_make)
data_app.command("check")(data.data_check)
data_app.command("list")(data.data_list)


def main() -> None:
    """Entry point: run a command; every expected error is one sentence on stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    # a terminal or a pipe may know fewer letters than a sentence has
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(standalone_mode=True)
    except TubeletError as error:
        _fail(str(error))
    except KeyboardInterrupt:  # before typer has begun to run the command
        _fail("interrupted", 130)
    except SystemExit as stop:
        if stop.code == 130:  # typer turns Ctrl-C into this code without a word
            typer.echo("tubelet: interrupted", err=True)
        raise
    except BrokenPipeError:  # the reader of our stdout has gone (for example `| head`)
        sys.stderr.close()
        raise SystemExit(1) from None
    except OSError as error:  # in most cases of stdout: what writes a file says so itself
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        with suppress(OSError, ValueError):  # what is left in its buffer would fail again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(
            f"cannot write {error.filename or 'the output'}: {error.strerror}, make room or write elsewhere"
        )


def _fail(message: str, code: int = 1) -> None:
    typer.echo(f"tubelet: {message}", err=True)
    raise SystemExit(code)


def _version(value: bool) -> None:
    if value:
        from tubelet import __version__

        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""
