"""The paper's data sets: how their outputs are decoded and scored, and the paper's settings.

Settings are those of Li & Liang 2021, Table 6 and Appendix A.2 of the ACL version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.errors import InvalidRequest
from app.evaluation.scores import BEAMS, TASKS

TABLE_DECODING = {"num_beams": BEAMS["e2e"], "max_tokens": 100}
SUMMARY_DECODING = {"num_beams": BEAMS["xsum"], "max_tokens": 62, "length_penalty": 0.8}


@dataclass(frozen=True)
class PaperSettings:
    """Rate, passes over the data, batch size and prefix length of one method on one data set."""

    lr: float = 5e-5
    epochs: int = 10
    batch_size: int = 5
    length: int = 10


@dataclass(frozen=True)
class LowData:
    """The recipe for little data: by size, optimiser steps or else epochs of each method."""

    words: str
    length: int
    batch_size: Mapping[str, int]
    steps: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    epochs: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    warmup_steps: int = 100
    lr: float = 5e-5


@dataclass(frozen=True)
class ExperimentTask:
    """A data set of the paper. `shown` are the metrics of its figures, the more important first."""

    name: str
    shown: tuple[str, str]
    decoding: Mapping[str, Any]
    lengths: tuple[int, ...]
    settings: Mapping[str, PaperSettings]
    low_data: LowData

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that the paper reports for it."""
        return TASKS[self.name]

    def paper(self, method: str) -> PaperSettings:
        """The paper's settings of a method; its defaults where the table has no row."""
        return self.settings.get(method, PaperSettings())


_TABLE_LENGTHS = (1, 5, 10, 20, 40)
_SUMMARY_LENGTHS = (1, 10, 20, 50, 80, 100, 200, 300)
_LOW_TABLE = LowData(
    words="table-to-text:",
    length=6,
    batch_size={"prefix": 10, "finetune": 10},
    steps={
        "prefix": {50: 200, 100: 200, 200: 200, 500: 400},
        "finetune": {50: 100, 100: 100, 200: 200, 500: 400},
    },
)
_LOW_SUMMARY = LowData(
    words="summarize",
    length=1,
    batch_size={"prefix": 5, "finetune": 6},
    epochs={
        "prefix": {50: 30, 100: 20, 200: 20, 500: 20},
        "finetune": {50: 30, 100: 10, 200: 3, 500: 3},
    },
)

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
            low_data=_LOW_TABLE,
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
            low_data=_LOW_TABLE,
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
            low_data=_LOW_TABLE,
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
            low_data=_LOW_SUMMARY,
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
