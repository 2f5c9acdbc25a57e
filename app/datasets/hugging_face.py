"""Folders that Hugging Face's `datasets` saved with `save_to_disk`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.datasets.example import Example
from app.datasets.records import Columns, from_record
from app.errors import InvalidRequest

_ONE, _MANY = "state.json", "dataset_dict.json"
"""Files that `save_to_disk` writes for one data set and for several splits."""


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` made the folder."""
    return any((folder / name).is_file() for name in (_ONE, _MANY))


def read_saved_dataset(folder: Path, columns: Columns, split: str | None) -> Iterator[Example]:
    """The examples of the rows; `line` is the row's number, from 1.

    InvalidRequest if the library is missing, if `split` is needed or unknown, if a column is
    missing, or if a row is wrong.
    """
    rows = _rows(folder, split)
    wanted = [columns.input, *columns.targets]
    if missing := [name for name in wanted if name not in rows.column_names]:
        raise InvalidRequest(
            f"{folder}: there is no column `{missing[0]}`; the data set has"
            f" {', '.join(rows.column_names)}. Say which column is the input (--input-column) and"
            " which are targets (--target-column)"
        )
    for number, record in enumerate(rows, start=1):
        yield from_record(record, columns, number, f"{folder}: row {number}")


def _rows(folder: Path, split: str | None) -> Any:
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError as error:
        raise InvalidRequest(
            f"{folder}: this folder needs the library `datasets`; install it with"
            " `pip install 'polyprefix[train]'`"
        ) from error
    try:
        loaded = load_from_disk(str(folder))
    except Exception as error:  # the library raises many kinds, of Arrow's too
        raise InvalidRequest(f"{folder}: the data set cannot be read: {error}") from error
    if not isinstance(loaded, DatasetDict):
        return loaded
    names = sorted(loaded)
    if split is None and len(names) == 1:
        return loaded[names[0]]
    if split not in names:
        given = "has several splits" if split is None else f"has no split `{split}`"
        raise InvalidRequest(
            f"{folder}: the data set {given}; choose one of {', '.join(names)} with --split"
        )
    return loaded[split]
