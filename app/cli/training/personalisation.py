"""`polyprefix experiment personalisation`: do users' prefixes beat the task's prefix alone?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.cli.configuration import check_folder
from app.cli.console import plain, stderr, stdout

if TYPE_CHECKING:
    from app.experiments.data import ExperimentData

PERSONALISATION = "personalisation"


def run_personalisation(
    read: ExperimentData,
    base: str,
    out: Path,
    field: str,
    seeds: int,
    steps: int,
    tested: int | None,
    device: str,
) -> None:
    """Train the task's prefix and the users' behind it, measure all, write CSV and a page.

    Users are the values of `field`. `seeds`, `steps` 0 and `tested` None mean the plan's own.
    """
    from app.experiments.personalisation.report import page, study_rows, write_rows
    from app.experiments.personalisation.study import Study, default_plan
    from app.experiments.personalisation.users import split_users
    from app.experiments.results import sole_use
    from app.model.load import hide_progress_bars, load_model

    folder = out / PERSONALISATION
    check_folder(folder, "--out")
    hide_progress_bars()
    plan = default_plan(seeds=seeds, steps=steps)
    data = split_users(
        read.train,
        read.test,
        field,
        examples=max(plan.sizes),
        task_inputs=plan.task_inputs,
        test_inputs=plan.test_inputs if tested is None else tested,
    )
    model = load_model(base, device=device, dtype="float32")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with sole_use(folder):
        study = Study(base, model, data, plan, folder)
        with Progress(*columns, TimeRemainingColumn(), console=stderr()) as progress:
            runs = progress.add_task("prefixes", total=study.num_prefixes)
            study.train(lambda what: progress.update(runs, advance=1, description=plain(what)))
        rows = study_rows(study.measure())
        write_rows(rows, folder / "results.csv")
        names = ", ".join(user.name for user in data.users)
        title = f"{model.spec.model_id}, {read.name} by {field}: {names}"
        written = folder / "table.md"
        written.write_text(page(rows, study.bleu({}), title), encoding="utf-8")
    stdout().print(plain(written.read_text(encoding="utf-8")), soft_wrap=True)
    for file in (folder / "results.csv", written):
        stdout().print(f"wrote {plain(str(file))}", soft_wrap=True)
