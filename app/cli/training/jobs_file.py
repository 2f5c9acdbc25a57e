"""The file of `polyprefix train --jobs`: each line as the arguments of a run, checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import typer

from app.cli.training.options import MethodOptions
from app.cli.training.run_plan import RunPlan, plan_run
from app.errors import InvalidRequest, PolyprefixError

_MAX_LINE = 1 << 20
_FOR_ALL = ("model", "device", "dtype", "resume", "jobs", "together")
"""What all runs share: only on the command line."""


@dataclass(frozen=True)
class PlannedJob:
    """A run and where it stands: `place` is `FILE:LINE`; `options` are all that it was given."""

    place: str
    plan: RunPlan
    options: Mapping[str, Any]


def read_jobs(ctx: typer.Context, path: Path) -> list[PlannedJob]:
    """The runs of the file, in order; options of the command line are for all of them.

    Raises InvalidRequest, which names each line that is wrong.
    """
    common = list(_given(ctx))
    jobs: list[PlannedJob] = []
    errors: list[str] = []
    for number, line in _lines(path):
        place = f"{path}:{number}"
        try:
            made = _planned(ctx, common, line)
            jobs.append(PlannedJob(place, *made))
        except typer.BadParameter as error:
            errors.append(f"{place}: {error.format_message()}")
        except (PolyprefixError, OSError) as error:
            errors.append(f"{place}: {error}")
    errors += _shared_places(jobs)
    if errors:
        raise InvalidRequest("\n".join(errors))
    if not jobs:
        raise InvalidRequest(f"{path} has no lines; each line is a job")
    return jobs


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE + 1):
            number += 1
            if len(line) > _MAX_LINE:
                raise InvalidRequest(f"{path}:{number}: the line is longer than 1 MiB")
            if line.strip():
                yield number, line


def _planned(
    ctx: typer.Context, common: list[str], line: bytes
) -> tuple[RunPlan, Mapping[str, Any]]:
    try:
        given = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the line is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise InvalidRequest("a job is a JSON object with the options of `polyprefix train`")
    arguments = [word for key, value in given.items() for word in _of_option(ctx, key, value)]
    with ctx.command.make_context("train", [*common, *arguments], parent=ctx.parent) as made:
        options = dict(made.params)
    for name in ("data", "name"):
        if options[name] is None:
            raise InvalidRequest(f"{name} is missing")
    if options["log_dir"] is not None:
        raise InvalidRequest("log_dir: logs for TensorBoard need a run alone; leave the option out")
    chosen = MethodOptions(**{field.name: options[field.name] for field in fields(MethodOptions)})
    return plan_run(chosen, options), options


def _given(ctx: typer.Context) -> Iterator[str]:
    """The options of the command line for all runs, as arguments."""
    for option in ctx.command.params:
        name = option.name or ""
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and name not in ("jobs", "together"):
            yield from _arguments(option, ctx.params[name])


def _of_option(ctx: typer.Context, key: str, value: Any) -> Iterator[str]:
    known = {
        flag.lstrip("-").replace("-", "_"): option
        for option in ctx.command.params
        for flag in option.opts
        if option.name != "help"
    }
    option = known.get(key.replace("-", "_"))
    if option is None:
        raise InvalidRequest(f"{key!r} is not an option of `polyprefix train`")
    if option.name in _FOR_ALL:
        raise InvalidRequest(f"{key}: all jobs share it; give it on the command line")
    yield from _arguments(option, value)


def _arguments(option: Any, value: Any) -> Iterator[str]:
    """The option with a JSON value, as on a command line; null leaves it out."""
    flag = option.opts[-1]
    if value is None:
        return
    if getattr(option, "is_flag", False):
        if not isinstance(value, bool):
            raise InvalidRequest(f"{flag.lstrip('-')} must be true or false, not {value!r}")
        if value or option.secondary_opts:
            yield flag if value else option.secondary_opts[0]
        return
    if isinstance(value, bool):
        raise InvalidRequest(f"{flag.lstrip('-')} takes a value, not {json.dumps(value)}")
    if getattr(option, "multiple", False):
        for each in value if isinstance(value, list | tuple) else [value]:
            yield f"{flag}={each}"
        return
    if isinstance(value, list):
        value = ",".join(map(str, value))
    elif isinstance(value, dict):
        value = json.dumps(value)
    # one word, so that a value may begin with a dash
    yield f"{flag}={value}"


def _shared_places(jobs: list[PlannedJob]) -> Iterator[str]:
    """What two jobs would both write."""
    first: dict[tuple[str, Any], str] = {}
    for job in jobs:
        plan = job.plan
        writes: list[tuple[str, Any]] = [("checkpoint", plan.job.checkpoint.resolve())]
        if plan.out is not None:
            writes.append(("out", plan.out.resolve()))
        if plan.store is not None:
            writes.append(("name in the store", (plan.store.resolve(), plan.name)))
        for what in writes:
            if what in first:
                shown = what[1][1] if isinstance(what[1], tuple) else what[1]
                yield f"{job.place}: {first[what]} has the same {what[0]}, {shown}"
            first.setdefault(what, job.place)
