"""`polyprefix experiment`: the paper's experiments as grids of runs, with figures and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.cli.configuration import base_model, check_folder
from app.cli.console import plain, print_warning, stderr, stdout, table
from app.cli.evaluation import data_options as given
from app.cli.training.personalisation import (
    PERSONALISATION,
    UNUSED,
    StudyOptions,
    run_personalisation,
)
from app.errors import InvalidRequest

if TYPE_CHECKING:
    from app.datasets.reader import ReadOptions
    from app.datasets.splits import HoldOut
    from app.experiments.data import ExperimentData
    from app.experiments.execution import Executor
    from app.experiments.grids import Experiment, GridOptions
    from app.experiments.plan import RunSettings
    from app.experiments.results import ResultsFile, RunResult
    from app.training.progress import Report

_TEST_INPUTS = {"small": 60, "paper": 0}
"""Inputs to test on by scale; 0: all."""
_INTERRUPTED = 130

Name = Annotated[
    str,
    typer.Argument(
        help="`prefix-length`, `data-size`, `initialisation`, `low-data`, `ablation`,"
        " `extrapolation`, `baselines` or `rates`; or `personalisation`: users' prefixes behind a"
        " task's."
    ),
]
Data = Annotated[
    Path,
    typer.Option(
        help="A data file, of which inputs are held out, or a folder with files, subfolders or"
        " saved splits called `train` and `test` (or `dev`, `valid`)."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        envvar="POLYPREFIX_MODEL",
        help="Base model: a folder, a hub id, `demo-gpt2` (the default) or `demo-bart`.",
    ),
]
Out = Annotated[Path, typer.Option(help="Folder; each experiment has a folder of its own in it.")]
ScaleOption = Annotated[
    str,
    typer.Option(
        "--scale",
        help="`small`: about an hour on two cores with a demo model. `paper`: the paper's grid and"
        " settings.",
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        help="`e2e`, `webnlg`, `dart` or `xsum`: decoding, metrics and the paper's numbers. By"
        " default the one that the data's path names."
    ),
]
Seeds = Annotated[int, typer.Option(help="Seeds of each setting (0: as the scale says).", min=0)]
Steps = Annotated[int, typer.Option(help="Steps of each run (0: as the scale says).", min=0)]
TestInputs = Annotated[
    int | None,
    typer.Option(help="Inputs to test on (0: all); by default 60 small, else all.", min=0),
]
Metrics = Annotated[
    str | None,
    typer.Option(help="Metrics with commas between, or a task's; by default those of the task."),
]
HoldOutOption = Annotated[
    str | None,
    typer.Option(
        "--hold-out",
        help="`extrapolation`: what is never trained on, as `category=Astronaut,City`; by default"
        " the WebNLG challenge's unseen categories, or three others if the data lack these.",
    ),
]
Users = Annotated[
    str, typer.Option(help="`personalisation`: the field of the data whose values are the users.")
]
Methods = Annotated[
    str | None,
    typer.Option(
        help="What is compared, with commas between: methods of `polyprefix train`, `adapter-3%` or"
        " `adapter-0.1%`. By default what the paper compares."
    ),
]
Dtype = Annotated[str, typer.Option(help="Of products, in training and decoding: fp32 or bf16.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="List the runs and estimate their time; do nothing else.")
]


def experiment(
    ctx: typer.Context,
    name: Name,
    data: Data,
    model: Model = None,
    out: Out = Path("experiments"),
    scale: ScaleOption = "small",
    task: Task = None,
    seeds: Seeds = 0,
    steps: Steps = 0,
    test_inputs: TestInputs = None,
    metrics: Metrics = None,
    hold_out: HoldOutOption = None,
    data_format: given.Format = None,
    input_column: given.InputColumn = None,
    target_column: given.TargetColumns = None,
    split: given.Split = None,
    users: Users = "category",
    methods: Methods = None,
    dtype: Dtype = "fp32",
    device: Device = "auto",
    dry_run: DryRun = False,
) -> None:
    """Run one of the paper's experiments: a grid of runs, one row of a CSV file for each.

    You can interrupt it at any time. The same command goes on where it was and never repeats a
    finished run; failed runs have a row with their error and are tried again. At the end, the
    folder has `results.csv`, `table.md`, `figure.png` and `figure.svg`.

    Example: `polyprefix experiment prefix-length --data e2e/dev.jsonl`
    """
    from app.evaluation.scores import metric_names
    from app.experiments.data import load_data
    from app.experiments.grids import GridOptions, experiment_named, method_names, scale_named
    from app.experiments.tasks import held_out_news, task_named

    reading = given.read_options(data_format, input_column, target_column, split)
    if name == PERSONALISATION:
        _check_options(ctx, name, UNUSED)
        asked_of = StudyOptions(users, seeds, steps, test_inputs, device, dry_run)
        run_personalisation(load_data(data, reading=reading), base_model(model), out, asked_of)
        return
    chosen, size = experiment_named(name), scale_named(scale)
    _check_options(ctx, name, chosen.unused_options)
    used = task_named(task, data.absolute().parts)
    check_folder(out / name, "--out")
    scored = used.metrics if metrics is None else metric_names(metrics)
    tested = _TEST_INPUTS[size.value] if test_inputs is None else test_inputs
    apart = _held_out(data, hold_out, reading) if chosen.unseen else None
    read = load_data(data, test_inputs=tested, hold_out=apart, reading=reading)
    asked = GridOptions(
        *(size, used, read.num_pairs, 0.0, scored, seeds, steps, method_names(methods)),
        dtype=dtype,
        held_out=held_out_news(used, apart.values) if apart else "",
    )
    _do(chosen, asked, read, base_model(model), out, device, dry_run=dry_run)


def _do(
    chosen: Experiment,
    asked: GridOptions,
    read: ExperimentData,
    base: str,
    out: Path,
    device: str,
    *,
    dry_run: bool,
) -> None:
    """Do the runs and show what came of them, or list them; exit with 130 after an interrupt."""
    from app.experiments.execution import dtype_named, executor
    from app.experiments.results import ResultsFile, sole_use
    from app.model.load import hide_progress_bars

    hide_progress_bars()
    folder = out / chosen.name
    results = ResultsFile(folder / "results.csv")
    how: dict[str, Any] = {"decoding": asked.task.decoding, "metrics": asked.metrics}
    how |= {"max_source": asked.task.max_source}
    how |= {} if asked.small else {"banned": asked.task.banned}
    how |= {"device": device, "dtype": dtype_named(asked.dtype), "is_tested": chosen.is_tested}
    with sole_use(folder), executor(base, read, folder, **how) as running:
        options = _with_rates(asked, running, out)
        runs = chosen.runs(options)
        if dry_run:
            _list_runs(running, results, runs)
            return
        whole = _run(running, results, runs)
        _show(running, chosen, options, results, runs, folder, read.name)
    if not whole:
        raise typer.Exit(_INTERRUPTED)


def _check_options(ctx: typer.Context, name: str, unused: Mapping[str, str]) -> None:
    """Raise InvalidRequest for an option that was typed and does nothing in this experiment."""
    for option, why in unused.items():
        source = ctx.get_parameter_source(option)
        if source is not None and source.name == "COMMANDLINE":
            typed = "--" + option.replace("_", "-")
            raise InvalidRequest(f"{typed}: `{name}` does not use it, because {why}; leave it out")


def _held_out(path: Path, hold_out: str | None, reading: ReadOptions) -> HoldOut:
    """What is never trained on: what `--hold-out` says, else the default for the data."""
    from app.datasets.splits import HoldOut
    from app.experiments.data import default_hold_out

    return default_hold_out(path, reading) if hold_out is None else HoldOut.parse(hold_out)


def _with_rates(asked: GridOptions, running: Executor, out: Path) -> GridOptions:
    """The options with the model's default rate and the rates that were chosen for it."""
    from app.training.choices import CHOICES_FILE, Choices

    chosen = Choices(out / CHOICES_FILE).of(running.model.spec.fingerprint)
    return replace(asked, default_lr=running.default_lr(), rates=chosen.rates)


def _list_runs(running: Executor, results: ResultsFile, runs: Sequence[RunSettings]) -> None:
    """Print the runs that are left, with an estimate of their time from a short trial."""
    from app.experiments.runner import remaining_runs

    left = remaining_runs(running, results, runs)
    done = len(runs) - len(left)
    if left:
        with stderr().status("timing a few steps"):
            pace = running.measure_pace(left[0])
        listed = table("run", "settings", "about")
        seconds = [running.estimate(each, pace) for each in left]
        for each, took in zip(left, seconds, strict=True):
            listed.add_row(running.run_digest(each), plain(each.label()), _duration(took))
        stdout().print(listed)
        stdout().print(f"{len(left)} runs, about {_duration(sum(seconds))} on this machine")
    if done:
        stdout().print(f"{done} runs are done already")


def _run(running: Executor, results: ResultsFile, runs: Sequence[RunSettings]) -> bool:
    """Do the runs that are left, under two progress bars; False if the user interrupted them."""
    from app.experiments.runner import Observer, remaining_runs, run_grid

    left = remaining_runs(running, results, runs)
    if len(left) < len(runs):
        stderr().print(f"{len(runs) - len(left)} of {len(runs)} runs are done already")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=stderr()) as progress:
        whole = progress.add_task("runs", total=len(left))
        steps = progress.add_task("steps", total=None)

        def starts(_: int, settings: RunSettings) -> None:
            progress.reset(steps, total=None, description=plain(settings.label()))

        def step(report: Report) -> None:
            progress.update(steps, completed=report.step, total=report.total)

        def ends(result: RunResult) -> None:
            progress.advance(whole)
            if result.error:
                progress.print(f"failed: {plain(result.run)}: {plain(result.error)}")

        try:
            run_grid(running, results, left, Observer(starts, step, ends))
        except KeyboardInterrupt:
            progress.stop()
            print_warning("interrupted; the same command goes on where it was")
            return False
    return True


def _show(
    running: Executor,
    chosen: Experiment,
    options: GridOptions,
    results: ResultsFile,
    runs: Sequence[RunSettings],
    folder: Path,
    data: str,
) -> None:
    """Write and print the table, draw the figure, keep the choice."""
    from app.experiments.choice import choose
    from app.experiments.figures import draw
    from app.experiments.paper import FINDINGS
    from app.experiments.runner import grid_results
    from app.experiments.tables import markdown, table_cells
    from app.training.choices import CHOICES_FILE, Choices

    rows = grid_results(running, results, runs)
    if not rows:
        return
    head, cells = table_cells(options, rows)
    shown = table(*head)
    for line in cells:
        shown.add_row(*map(plain, line))
    stdout().print(shown)
    stdout().print(FINDINGS[chosen.name], soft_wrap=True)
    written = folder / "table.md"
    written.write_text(markdown(chosen, options, rows, data), encoding="utf-8")
    choices = Choices(folder.parent / CHOICES_FILE)
    if len(rows) == len(runs):
        for said in choose(choices, chosen.name, rows):
            stdout().print(f"{said} (in {plain(str(choices.path))})", soft_wrap=True)
    for path in [results.path, written, *draw(chosen, options, rows, folder)]:
        stdout().print(f"wrote {plain(str(path))}", soft_wrap=True)
    failed = sum(bool(row.error) for row in rows)
    if failed:
        print_warning(f"{failed} of {len(rows)} runs have failed; {results.path} has the errors")
        raise typer.Exit(1)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
