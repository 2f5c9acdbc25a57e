"""The results of an experiment: a CSV file with one row for each run."""

from __future__ import annotations

import csv
import fcntl
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from app.errors import Conflict, InvalidRequest
from app.evaluation.scores import LABELS

SLOT_METRICS = ("slot_errors", "slots_all_right")
"""Percent of slots that are wrong, and of inputs whose slots are all right."""
METRICS = (*(name for name in LABELS if name != "bertscore"), *SLOT_METRICS)
"""Names of scores in the file; each stands a second time, with `unseen_`, for held-out values."""
SCORES = (*METRICS, *(f"unseen_{name}" for name in METRICS))


@dataclass(frozen=True)
class RunResult:
    """One row: the settings of a run as they were, and what was measured.

    Losses are the trainer's: nats per sentence for decoders, per token with an encoder. `trained`
    is how many numbers the method keeps. `error` is empty if the run has ended well.
    """

    run: str
    experiment: str
    model: str
    fingerprint: str
    method: str
    length: int
    words: str
    data_size: int
    subset_seed: int
    seed: int
    lr: float | None = None
    batch_size: int | None = None
    steps: int | None = None
    trained: int | None = None
    train_seconds: float | None = None
    decode_seconds: float | None = None
    base_loss: float | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    development_loss: float | None = None
    test_inputs: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    version: str = ""
    finished: str = ""
    error: str = ""


_FIELDS = {each.name: str(each.type) for each in fields(RunResult) if each.name != "scores"}
COLUMNS = (*(name for name in _FIELDS if name not in ("version", "finished", "error")), *SCORES)
COLUMNS = (*COLUMNS, "version", "finished", "error")


class ResultsFile:
    """The CSV file of an experiment. It is replaced as a whole, so a reader never sees a part."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[RunResult]:
        """All rows, in the order in which the runs ended. InvalidRequest if it is another file."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"{self.path}: cannot be read: {error}") from error
        rows = csv.DictReader(io.StringIO(text))
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise InvalidRequest(
                f"{self.path}: its columns are not those of this version; move the file away or"
                " give another --out"
            )
        return [self._parsed(row, rows.line_num) for row in rows]

    def latest(self) -> dict[str, RunResult]:
        """The last row of each run, by the run's digest."""
        return {result.run: result for result in self.read()}

    def append(self, result: RunResult) -> None:
        """Add a row; the file has it completely or not at all. Raises OSError if that fails."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for each in [*self.read(), result]:
            writer.writerow(_row(each))
        staged = self.path.with_name(self.path.name + ".tmp")
        with staged.open("w", encoding="utf-8") as file:
            file.write(text.getvalue())
            file.flush()
            os.fsync(file.fileno())
        staged.replace(self.path)

    def _parsed(self, row: dict[str, Any], line: int) -> RunResult:
        try:
            values = {name: _value(row[name], kind) for name, kind in _FIELDS.items()}
            scores = {name: float(row[name]) for name in SCORES if row[name]}
        except (TypeError, ValueError) as error:
            raise InvalidRequest(
                f"{self.path}:{line}: the row cannot be read ({error}); remove it, and its run is"
                " done again"
            ) from error
        return RunResult(**values, scores=scores)


@contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Keep other processes from running an experiment in `folder`. Conflict if one does."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                f"another process runs an experiment in {folder}; wait for it or give another --out"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _row(result: RunResult) -> dict[str, str]:
    values = {name: _written(getattr(result, name)) for name in _FIELDS}
    return values | {name: _written(value) for name, value in result.scores.items()}


def _written(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(value).split())


def _value(text: str, kind: str) -> Any:
    if kind == "str":
        return text
    if not text and "None" in kind:
        return None
    return float(text) if kind.startswith("float") else int(text)
