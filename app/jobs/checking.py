"""Checks an uploaded file before it is kept: every line of it, in bounded memory.

Reading a large file keeps the interpreter's lock for seconds, so it pauses again and again: what
is served meanwhile is slowed little.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from app.datasets.lines import read_lines
from app.datasets.records import Columns, read_json_lines
from app.db.errors import storage_faults
from app.errors import InvalidRequest
from app.jobs.types import TEXT, TRAINING_DATA
from app.prefix.strict_json import printable

_WORK_S, _PAUSE_S = 0.002, 0.004
"""Seconds of work between two pauses, and of each pause."""
_MAX_NAME = 255


@dataclass(frozen=True)
class CheckedFile:
    """What is known of a file once it is checked; as of `TrainingFile`."""

    filename: str
    purpose: str
    nbytes: int
    examples: int
    pairs: int
    sha256: str


def check_file(path: Path, filename: str, purpose: str) -> CheckedFile:
    """What the file at `path` holds.

    A file of examples is JSON lines of `input` with `target` or `targets`, or of `prompt` and
    `completion`. A text is UTF-8. InvalidRequest names the file as `filename` and the line.
    """
    check_filename(filename)
    check_purpose(purpose)
    try:
        examples, pairs = _count_examples(path) if purpose == TRAINING_DATA else _check_text(path)
    except InvalidRequest as error:
        message = error.message.replace(str(path), printable(filename)[1:-1])
        raise InvalidRequest(message, param="file") from error
    with storage_faults("reading the file"), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        nbytes = path.stat().st_size
    return CheckedFile(filename, purpose, nbytes, examples, pairs, digest)


def check_filename(filename: str) -> None:
    """InvalidRequest unless the name can be kept and shown."""
    if not 0 < len(filename) <= _MAX_NAME or not filename.isprintable():
        raise InvalidRequest(
            f"the file's name is 1 to {_MAX_NAME} printable characters", param="file"
        )


def check_purpose(purpose: str) -> None:
    """InvalidRequest unless files of this purpose are taken."""
    if purpose not in (TRAINING_DATA, TEXT):
        raise InvalidRequest(
            f"purpose is `{TRAINING_DATA}` (examples to train on) or `{TEXT}` (one text, for "
            f"`distill`), not {printable(purpose)}",
            param="purpose",
        )


def _count_examples(path: Path) -> tuple[int, int]:
    examples = pairs = 0
    pace = _Pace()
    for example in read_json_lines(path, Columns()):
        examples += 1
        pairs += len(example.targets)
        pace.keep()
    if not examples:
        raise InvalidRequest(f"{path}: there is no example in it")
    return examples, pairs


def _check_text(path: Path) -> tuple[int, int]:
    pace = _Pace()
    is_empty = True
    for number, line in read_lines(path):
        if "\0" in line:
            raise InvalidRequest(f"{path}:{number}: the line has a NUL")
        is_empty = is_empty and not line.strip()
        pace.keep()
    if is_empty:
        raise InvalidRequest(f"{path}: there is no text in it")
    return 0, 0


class _Pace:
    """Makes a loop pause, so that other threads have most of the time."""

    def __init__(self) -> None:
        self._until = time.monotonic() + _WORK_S

    def keep(self) -> None:
        """Pauses if it is time."""
        if time.monotonic() >= self._until:
            time.sleep(_PAUSE_S)
            self._until = time.monotonic() + _WORK_S
