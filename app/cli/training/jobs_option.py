"""`polyprefix train --jobs FILE`: many runs, one on each line of a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

_REQUIRED = ("data", "name")

Jobs = Annotated[
    Path | None,
    typer.Option(
        help="Train many prefixes together: each line is a JSON object with options of this"
        ' command, as `{"data": "a.jsonl", "name": "a", "lr": 0.001}`. Options given beside'
        " `--jobs` are for all lines.",
        exists=True,
        dir_okay=False,
        readable=True,
    ),
]
Together = Annotated[
    int, typer.Option(min=1, help="With `--jobs`: runs at the same time; the others wait.")
]


def with_jobs_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--jobs` and `--together`; with `--jobs`, data and name are on the lines of the file."""

    @wraps(command)
    def run(ctx: typer.Context, jobs: Path | None, together: int, **given: Any) -> None:
        if jobs is not None:
            from app.cli.training.jobs_run import train_jobs

            train_jobs(ctx, jobs, together)
            return
        for name in _REQUIRED:
            if given[name] is None:
                raise typer.BadParameter(f"give --{name}, or --jobs with a file of jobs", ctx)
        command(**given)

    own = inspect.signature(command, eval_str=True).parameters
    optional = {
        name: own[name].replace(default=None, annotation=_or_none(own[name].annotation))
        for name in _REQUIRED
    }
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("ctx", keyword, annotation=typer.Context),
        *(optional.get(name, each) for name, each in own.items()),
        inspect.Parameter("jobs", keyword, default=None, annotation=Jobs),
        inspect.Parameter("together", keyword, default=32, annotation=Together),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    del run.__wrapped__
    return run


def _or_none(annotation: Any) -> Any:
    [option] = annotation.__metadata__
    return Annotated[annotation.__origin__ | None, option]
