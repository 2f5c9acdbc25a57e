"""The parts of a data folder: what to train on and what to test on, by the names of its entries."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from app.errors import InvalidRequest

_PART = re.compile(r"(?<![a-z])(train|test|dev|valid|val(?![a-z]))")
_ENDINGS = frozenset({".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".xml", ".source"})
_SAVED = ".arrow"
"""What `datasets` saves in the folder of each split."""

Parts = Mapping[str, list[Path]]


def data_files(folder: Path) -> list[Path]:
    """The files directly in the folder that may be data, in the order of their names."""
    return sorted(each for each in folder.iterdir() if each.suffix.lower() in _ENDINGS)


def parts_in(folder: Path) -> Parts:
    """The entries of each part, `train`, `test`, `dev` and `valid`: files first, then subfolders.

    The part's word begins a word of the name: `trainset.csv`, `e2e-dev.jsonl`, `test/`. A subfolder
    counts if there are data below it; each split of a saved `DatasetDict` has one.
    """
    folders = sorted(each for each in folder.iterdir() if each.is_dir() and _data_below(each))
    return parts_among(folder, [*data_files(folder), *folders])


def parts_below(folder: Path) -> Parts:
    """The files and folders of each part at any depth below the folder."""
    return parts_among(folder, _data_below(folder))


def parts_among(folder: Path, paths: Iterable[Path]) -> Parts:
    """The parts to which these paths below the folder belong, by the outermost name with a word."""
    found: dict[str, dict[Path, None]] = {}
    for path in paths:
        named = folder
        for name in path.relative_to(folder).parts:
            named /= name
            if word := _PART.search(name.lower()):
                found.setdefault("valid" if word[1] == "val" else word[1], {})[named] = None
                break
    return {word: list(members) for word, members in found.items()}


def check_one_part(folder: Path, paths: Iterable[Path]) -> None:
    """Raise InvalidRequest if the paths below the folder belong to several parts."""
    parts = parts_among(folder, paths)
    if len(parts) > 1:
        names = ", ".join(str(members[0].relative_to(folder)) for members in parts.values())
        first = parts.get("train", next(iter(parts.values())))[0]
        raise InvalidRequest(
            f"{folder}: the folder has several parts of a data set ({names}), which must not be"
            f" mixed; give one of them, such as {first}"
        )


def _data_below(folder: Path) -> list[Path]:
    known = _ENDINGS | {_SAVED}
    return sorted(each for each in folder.rglob("*") if each.suffix.lower() in known)
