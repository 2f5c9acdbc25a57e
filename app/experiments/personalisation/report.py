"""What the study has found, as rows of a CSV file and as a page with tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from app.evaluation.significance import Difference, paired_bootstrap
from app.evaluation.statistics import Statistics
from app.experiments.personalisation.study import Measured, UserSetting

ALL = "all users"
_CERTAIN = 0.05


@dataclass(frozen=True)
class StudyRow:
    """One user, or all, in one setting: nats per target token with each system.

    `difference` is `own` minus `task` (below 0: the user's prefix is better) with the bounds of
    95 % of the bootstrap samples; `from_other` is `own` minus `other`.
    """

    user: str
    size: int
    start: str
    seed: int
    inputs: int
    tokens: int
    task: float
    own: float
    other: float
    difference: float
    low: float
    high: float
    p_value: float
    from_other: float
    from_other_p_value: float


def study_rows(measured: Sequence[Measured]) -> list[StudyRow]:
    """A row for each user and setting, and one of all users together for each setting."""
    rows, settings = [], list(dict.fromkeys(each.setting for each in measured))
    for setting in settings:
        of_setting = [each for each in measured if each.setting == setting]
        rows += [_row(each.user, setting, each.losses) for each in of_setting]
        pooled = {
            system: Statistics(
                np.concatenate([each.losses[system].rows for each in of_setting]),
                of_setting[0].losses[system].combine,
            )
            for system in of_setting[0].losses
        }
        rows.append(_row(ALL, setting, pooled))
    return rows


def write_rows(rows: Sequence[StudyRow], path: Path) -> None:
    """Write the CSV file as a whole."""
    text = io.StringIO()
    names = [each.name for each in fields(StudyRow)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = (getattr(row, name) for name in names)
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in values])
    staged = path.with_name(path.name + ".tmp")
    staged.write_text(text.getvalue(), encoding="utf-8")
    staged.replace(path)


def page(rows: Sequence[StudyRow], bleu: Mapping[str, Statistics], title: str) -> str:
    """A Markdown page: all users by setting, and how many users gain."""
    settings = dict.fromkeys((row.size, row.start, row.seed) for row in rows)
    lines = [f"# {title}", "", *_TABLE]
    for size, start, seed in settings:
        here = [row for row in rows if (row.size, row.start, row.seed) == (size, start, seed)]
        (whole,) = (row for row in here if row.user == ALL)
        users = [row for row in here if row.user != ALL]
        gains = [row for row in users if row.difference < 0 and row.p_value < _CERTAIN]
        harms = [row for row in users if row.difference > 0 and row.p_value < _CERTAIN]
        lines.append(
            f"| {size} | {start} | {seed} | {whole.task:.4f} | {whole.own:.4f} | {whole.other:.4f}"
            f" | {whole.difference:+.4f} ({whole.low:+.4f} to {whole.high:+.4f})"
            f" | {whole.p_value:.3f} | {len(gains)} / {len(harms)} of {len(users)} |"
        )
    if bleu:
        change = paired_bootstrap(bleu["own"], bleu["task"])
        lines += ["", f"BLEU of the largest size, first seed: {_bleu_words(bleu, change)}."]
    return "\n".join([*lines, ""])


_TABLE = (
    "Nats per target token on the users' held-out texts; differences are `own` − `task`.",
    "",
    "| examples | start | seed | task's prefix | own prefix | another user's | difference (95 %)"
    " | p | users better / worse (p < 0.05) |",
    "|---|---|---|---|---|---|---|---|---|",
)


def _bleu_words(bleu: Mapping[str, Statistics], change: Difference) -> str:
    return (
        f"task's prefix {bleu['task'].score:.1f}, own prefix {bleu['own'].score:.1f}; difference"
        f" {change.difference:+.1f} ({change.low:+.1f} to {change.high:+.1f}, p"
        f" {change.p_value:.3f})"
    )


def _row(user: str, setting: UserSetting, losses: Mapping[str, Statistics]) -> StudyRow:
    task, own, other = losses["task"], losses["own"], losses["other"]
    found, besides = paired_bootstrap(own, task), paired_bootstrap(own, other)
    return StudyRow(
        user,
        setting.size,
        setting.start,
        setting.seed,
        len(own.rows),
        int(own.rows[:, 1].sum()),
        task.score,
        own.score,
        other.score,
        found.difference,
        found.low,
        found.high,
        found.p_value,
        besides.difference,
        besides.p_value,
    )
