"""`polyprefix experiment personalisation`: do users' prefixes beat the task's prefix alone?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.cli.configuration import check_folder
from app.cli.console import plain, stderr, stdout, table

if TYPE_CHECKING:
    from app.experiments.data import ExperimentData
    from app.experiments.personalisation.study import Study

PERSONALISATION = "personalisation"
UNUSED = {
    "scale": "it has a plan of its own",
    "task": "it measures nats per token and BLEU on any data",
    "metrics": "it measures nats per token and BLEU",
    "hold_out": "it holds no values out",
    "methods": "it trains prefixes alone",
    "dtype": "it computes in fp32",
}
"""Options of `polyprefix experiment` that do nothing in this one, and why."""


@dataclass(frozen=True)
class StudyOptions:
    """What the command was given. Users are the values of the field `users`.

    `seeds`, `steps` 0 and `test_inputs` None mean the plan's own.
    """

    users: str
    seeds: int
    steps: int
    test_inputs: int | None
    device: str
    dry_run: bool


def run_personalisation(read: ExperimentData, base: str, out: Path, options: StudyOptions) -> None:
    """Train the task's prefix and the users' behind it, measure all, write CSV and a page."""
    from app.experiments.personalisation.report import page, study_rows, write_rows
    from app.experiments.personalisation.study import Study, default_plan
    from app.experiments.personalisation.users import split_users
    from app.experiments.results import sole_use
    from app.model.load import hide_progress_bars, load_model

    folder = out / PERSONALISATION
    check_folder(folder, "--out")
    hide_progress_bars()
    tested = options.test_inputs
    plan = default_plan(seeds=options.seeds, steps=options.steps)
    data = split_users(
        read.train,
        read.test,
        options.users,
        examples=max(plan.sizes),
        task_inputs=plan.task_inputs,
        test_inputs=plan.test_inputs if tested is None else tested or len(read.test),
    )
    model = load_model(base, device=options.device, dtype="float32")
    study = Study(base, model, data, plan, folder)
    if options.dry_run:
        _list_prefixes(study)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with sole_use(folder):
        with Progress(*columns, TimeRemainingColumn(), console=stderr()) as progress:
            runs = progress.add_task("prefixes", total=study.num_prefixes)
            study.train(lambda what: progress.update(runs, advance=1, description=plain(what)))
        rows = study_rows(study.measure())
        write_rows(rows, folder / "results.csv")
        names = ", ".join(user.name for user in data.users)
        title = f"{model.spec.model_id}, {read.name} by {options.users}: {names}"
        written = folder / "table.md"
        written.write_text(page(rows, study.bleu({}), title), encoding="utf-8")
    stdout().print(plain(written.read_text(encoding="utf-8")), soft_wrap=True)
    for file in (folder / "results.csv", written):
        stdout().print(f"wrote {plain(str(file))}", soft_wrap=True)


def _list_prefixes(study: Study) -> None:
    """Print what a run would train."""
    listed = table("prefixes", "number", "trained already")
    for what, number, done in study.planned():
        listed.add_row(plain(what), str(number), str(done))
    stdout().print(listed)
    stdout().print(f"{study.num_prefixes} prefixes for {len(study.data.users)} users")
