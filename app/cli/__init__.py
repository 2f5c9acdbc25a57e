"""The command line. Commands import heavy modules when they run, so `--help` answers at once."""

from __future__ import annotations

import sys
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated

import typer

from app.cli import audit, bench, key, model, tenant
from app.cli.catalog import migrate
from app.cli.console import command_group
from app.cli.distill import distill
from app.cli.evaluate import evaluate
from app.cli.experiment import experiment
from app.cli.prefix import commands as prefix
from app.cli.serve import serve
from app.cli.train import train
from app.cli.training.worker import worker

app = command_group(
    "One frozen language model, many tasks: every request names a *prefix*, a few trained"
    " key/value vectors per layer, and every batch mixes prefixes.\n\n"
    "Start with `polyprefix serve`; `polyprefix COMMAND --help` explains each command.",
    name="polyprefix",
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(train)
app.command()(distill)
app.command()(worker)
app.command()(evaluate)
app.command()(experiment)
app.command()(migrate)
app.add_typer(prefix.app, name="prefix")
app.add_typer(model.app, name="model")
app.add_typer(tenant.app, name="tenant")
app.add_typer(key.app, name="key")
app.add_typer(audit.app, name="audit")
app.add_typer(bench.app, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"polyprefix {version('polyprefix')}")
        raise typer.Exit()


@app.callback()
def _common(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """The console script `polyprefix`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # escape characters that the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    app()
