"""The paper's data sets: how their outputs are decoded and scored, and the paper's settings.

Settings are those of Li & Liang 2021, Table 6 and Appendix A.2 of the ACL version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.errors import InvalidRequest
from app.evaluation.scores import BEAMS, TASKS
from app.training.methods.low_data import LOW_DATA_SUMMARIES, LOW_DATA_TABLES, LowDataSettings

WITHIN_NEWS = "within-news"
NEWS_TO_SPORTS = "news-to-sports"
_OTHER_NEWS = frozenset({"health", "technology"})
"""Kinds of news that the paper names among those held out for `within-news`."""

TABLE_DECODING = {"num_beams": BEAMS["e2e"], "max_tokens": 100}
LINE_BREAKS = ("\n", "\n\n")
SUMMARY_DECODING = {
    "num_beams": BEAMS["xsum"],
    "min_tokens": 10,
    "max_tokens": 61,
    "length_penalty": 0.8,
}
"""The authors' least and greatest length, 11 and 62, count the start token too."""


@dataclass(frozen=True)
class PaperSettings:
    """Rate, passes over the data, batch size and prefix length of one method on one data set."""

    lr: float = 5e-5
    epochs: int = 10
    batch_size: int = 5
    length: int = 10


@dataclass(frozen=True)
class ExperimentTask:
    """A data set of the paper. `shown` are the metrics of its figures, the more important first.

    `other_lengths`: further prefixes of the paper's table. `held_out`: the settings of experiments
    that hold out a part of it, by the paper's name of the part. `max_source`: tokens of a source
    that an encoder reads, in training and in tests (0: as many as it can). `banned`: what the
    authors forbid in outputs.
    """

    name: str
    shown: tuple[str, str]
    decoding: Mapping[str, Any]
    lengths: tuple[int, ...]
    settings: Mapping[str, PaperSettings]
    low_data: LowDataSettings
    other_lengths: tuple[int, ...] = ()
    max_source: int = 0
    banned: tuple[str, ...] = ()
    held_out: Mapping[str, Mapping[str, PaperSettings]] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that the paper reports for it."""
        return TASKS[self.name]

    def paper(self, method: str, held_out: str = "") -> PaperSettings:
        """The paper's settings of a method; its defaults where the table has no row."""
        return self.held_out.get(held_out, self.settings).get(method, PaperSettings())


_TABLE_LENGTHS = (1, 5, 10, 20, 40)
_SUMMARY_LENGTHS = (1, 10, 20, 50, 80, 100, 200, 300)

EXPERIMENT_TASKS = {
    task.name: task
    for task in (
        ExperimentTask(
            "e2e",
            shown=("bleu", "rouge_l_coco"),
            decoding=TABLE_DECODING,
            lengths=_TABLE_LENGTHS,
            settings={
                "prefix": PaperSettings(8e-5, 5, 10, length=5),
                "adapter-3%": PaperSettings(5e-5, 5, 5),
                "adapter-0.1%": PaperSettings(8e-5, 10, 5),
                "finetune": PaperSettings(5e-5, 5, 10),
                "finetune-top2": PaperSettings(5e-5, 5, 10),
            },
            low_data=LOW_DATA_TABLES,
            banned=LINE_BREAKS,
        ),
        ExperimentTask(
            "webnlg",
            shown=("bleu", "ter"),
            decoding=TABLE_DECODING,
            lengths=_TABLE_LENGTHS,
            settings={
                "prefix": PaperSettings(5e-5, 5, 5, length=5),
                "adapter-3%": PaperSettings(5e-5, 5, 5),
                "adapter-0.1%": PaperSettings(5e-5, 10, 5),
                "finetune": PaperSettings(1e-5, 10, 6),
                "finetune-top2": PaperSettings(5e-5, 10, 9),
            },
            low_data=LOW_DATA_TABLES,
            banned=LINE_BREAKS,
        ),
        ExperimentTask(
            "dart",
            shown=("bleu", "ter"),
            decoding=TABLE_DECODING,
            lengths=_TABLE_LENGTHS,
            settings={
                "prefix": PaperSettings(5e-5, 10, 5, length=10),
                "adapter-3%": PaperSettings(5e-5, 5, 5),
                "adapter-0.1%": PaperSettings(8e-5, 5, 5),
                "finetune": PaperSettings(1e-5, 10, 6),
                "finetune-top2": PaperSettings(5e-5, 5, 5),
            },
            low_data=LOW_DATA_TABLES,
            banned=LINE_BREAKS,
        ),
        ExperimentTask(
            "xsum",
            shown=("rouge2", "rougeL"),
            decoding=SUMMARY_DECODING,
            lengths=_SUMMARY_LENGTHS,
            settings={
                "prefix": PaperSettings(5e-5, 30, 14, length=100),
                "finetune": PaperSettings(3e-5, 5, 18),
            },
            low_data=LOW_DATA_SUMMARIES,
            other_lengths=(5,),
            max_source=512,
            held_out={
                WITHIN_NEWS: {
                    "prefix": PaperSettings(5e-5, 30, 36, length=80),
                    "finetune": PaperSettings(3e-5, 5, 18),
                },
                NEWS_TO_SPORTS: {
                    "prefix": PaperSettings(5e-5, 15, 36, length=40),
                    "finetune": PaperSettings(3e-5, 5, 18),
                },
            },
        ),
    )
}
"""The data sets by name. The paper took XSUM's fine-tuning scores from Lewis et al.; its settings
here are those of the paper's own fine-tuning on news."""


def task_named(name: str | None, path_parts: tuple[str, ...]) -> ExperimentTask:
    """The task `name`; if None, the one whose name is part of the data's path.

    InvalidRequest if there is no such task.
    """
    if name is None:
        words = " ".join(path_parts[-2:]).lower()
        name = next((known for known in EXPERIMENT_TASKS if known in words), None)
    if name not in EXPERIMENT_TASKS:
        what = "the data's path names no task" if name is None else f"there is no task '{name}'"
        raise InvalidRequest(f"{what}; give --task with one of {', '.join(EXPERIMENT_TASKS)}")
    return EXPERIMENT_TASKS[name]


def held_out_news(task: ExperimentTask, values: Sequence[str]) -> str:
    """The paper's name for holding out these kinds of XSUM's articles; empty if it has none."""
    sports = ["sport" in value.lower() for value in values]
    if task.name != "xsum" or not sports:
        return ""
    if all(sports):
        return NEWS_TO_SPORTS
    others = _OTHER_NEWS.intersection(value.lower() for value in values)
    return WITHIN_NEWS if others and not any(sports) else ""
