"""Reads a data set in any of the known formats, which it recognises by name and content."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.datasets.delimited import read_delimited
from app.datasets.e2e import SEPARATOR, read_e2e_lines
from app.datasets.example import Example, group
from app.datasets.hugging_face import is_saved_dataset, read_saved_dataset
from app.datasets.lines import check_is_text, peek, unreadable
from app.datasets.parallel import SUFFIXES, parallel_files, read_parallel
from app.datasets.parts import check_one_part
from app.datasets.records import Columns, read_json_lines
from app.datasets.triples import read_json_document
from app.datasets.webnlg_xml import read_webnlg_xml
from app.errors import InvalidRequest

_log = logging.getLogger(__name__)

_LINES = (".jsonl", ".ndjson")
_ENTRIES = re.compile(r"\{\s*\"entries\"")


@dataclass(frozen=True)
class ReadOptions:
    """What a file cannot say itself: its format, which columns count, and which split of several.

    `format` None means that name and content decide; else one of `FORMATS`.
    """

    format: str | None = None
    columns: Columns = field(default_factory=Columns)
    split: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """What was asked for, as JSON values; empty if nothing was."""
        made: dict[str, Any] = {"format": self.format, "split": self.split}
        if self.columns.input != Columns().input:
            made["input_column"] = self.columns.input
        made["target_columns"] = list(self.columns.targets)
        return {name: value for name, value in made.items() if value}


_READERS: dict[str, Callable[[Path, ReadOptions], Iterator[Example]]] = {
    "jsonl": lambda path, options: read_json_lines(path, options.columns),
    "csv": lambda path, options: read_delimited(path, options.columns, ","),
    "tsv": lambda path, options: read_delimited(path, options.columns, "\t"),
    "e2e": lambda path, _: read_e2e_lines(path),
    "json": lambda path, options: read_json_document(path, options.columns),
    "xml": lambda path, _: _xml_files(path),
    "parallel": lambda path, _: read_parallel(path),
    "datasets": lambda path, options: read_saved_dataset(path, options.columns, options.split),
}

FORMATS = tuple(_READERS)
"""Names of the formats; app/training/README.md describes them."""


def read_examples(path: Path, options: ReadOptions | None = None) -> list[Example]:
    """All examples of a file or folder, one for each input, in order.

    Lines with the same input become one example with all their targets. The log tells how many
    there were, and how many pairs are given more than once (they are kept). InvalidRequest names
    file and line of what is wrong.
    """
    options = options or ReadOptions()
    grouped = group(_read(path, options))
    if not grouped.examples:
        raise InvalidRequest(f"{path}: there is no example in it")
    if grouped.repeated_pairs:
        _log.warning(
            "%s: %d pairs of input and target are given more than once; all of them are used",
            path,
            grouped.repeated_pairs,
        )
    if grouped.repeated_inputs:
        _log.info("%s: %d lines repeat an input", path, grouped.repeated_inputs)
    return grouped.examples


def _read(path: Path, options: ReadOptions) -> Iterator[Example]:
    """The examples; an error says which format was read if only the content could tell it."""
    if path.is_file():
        check_is_text(path)
    chosen = options.format or _named(path) or _recognised_content(path)
    if chosen not in _READERS:
        raise InvalidRequest(f"the format '{chosen}' is unknown; formats are {', '.join(FORMATS)}")
    if options.split is not None and chosen != "datasets":
        raise InvalidRequest(
            f"{path}: the format {chosen} has no splits, so there is no `{options.split}`; leave"
            " out --split, or give a folder of the library `datasets`"
        )
    try:
        yield from _READERS[chosen](path, options)
    except InvalidRequest as error:
        if options.format is not None or path.is_dir() or _named(path) is not None:
            raise
        raise InvalidRequest(
            f"{error.message}. By how it begins, the file was read in the format {chosen}; --format"
            f" names another one: {', '.join(FORMATS)}"
        ) from error


def data_digest(path: Path) -> str:
    """SHA-256, hex, of the file's bytes; of a folder or of two files, over their names too."""
    files = _files(path)
    digest = hashlib.sha256()
    for each in files:
        if len(files) > 1:
            name = each.relative_to(path) if path.is_dir() else each.name
            digest.update(f"{name}\0{each.stat().st_size}\0".encode())
        with each.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(each for each in path.rglob("*") if each.is_file())
    return list(parallel_files(path)) if path.suffix in SUFFIXES else [path]


def _named(path: Path) -> str | None:
    """The format that a folder or the ending of a file tells; None if the content must."""
    if path.is_dir():
        return _recognised_folder(path)
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return "parallel"
    if suffix in _LINES:
        return "jsonl"
    if suffix in (".csv", ".tsv", ".xml"):
        return suffix[1:]
    return None


def _recognised_folder(path: Path) -> str:
    if is_saved_dataset(path):
        return "datasets"
    if next(path.rglob("*.xml"), None) is not None:
        return "xml"
    if next(path.rglob("*.parquet"), None) is not None:
        raise InvalidRequest(
            f"{path}: the folder holds Parquet files, which are not read; save the data with the"
            " library `datasets`: `load_dataset('parquet', data_dir=…).save_to_disk(FOLDER)`"
        )
    raise InvalidRequest(
        f"{path}: the folder was not saved by `datasets` and has no WebNLG XML files; give"
        " --data a file"
    )


def _recognised_content(path: Path) -> str:
    """By how the file begins; JSON lines if nothing else is recognised."""
    begin, suffix = peek(path), path.suffix.lower()
    if begin.startswith("<"):
        return "xml"
    if suffix == ".json" and (begin.startswith("[") or _ENTRIES.match(begin)):
        return "json"
    if SEPARATOR in begin.partition("\n")[0] and not begin.startswith("{"):
        return "e2e"
    return "jsonl"


def _xml_files(path: Path) -> Iterator[Example]:
    """Of a file, or of all XML files below a folder, in the order of their names.

    InvalidRequest if the folder has a data set's training part and its test part.
    """
    try:
        files = sorted(path.rglob("*.xml")) if path.is_dir() else [path]
    except OSError as error:
        raise unreadable(path, error) from error
    if path.is_dir():
        check_one_part(path, files)
    for each in files:
        yield from read_webnlg_xml(each)
