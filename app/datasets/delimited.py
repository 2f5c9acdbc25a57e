"""CSV and TSV files with a header, and the E2E challenge's CSV of meaning representations."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from app.datasets.e2e import linearise_representation
from app.datasets.example import Example, checked_text
from app.datasets.lines import read_lines
from app.datasets.records import Columns, from_record
from app.errors import InvalidRequest

_E2E_NAMES = ("mr", "ref")


def read_delimited(path: Path, columns: Columns, delimiter: str) -> Iterator[Example]:
    """The example of each row, by the names in the first row; quoted cells may have line ends.

    A header with `mr` and `ref` is the E2E challenge's: its inputs become `name : X | eatType : Y`.
    An empty cell of a named target column counts as none. InvalidRequest names file and line.
    """
    rows = _rows(path, delimiter)
    _, header = next(rows, (1, []))
    names = [name.strip() for name in header]
    is_e2e = columns == Columns() and set(_E2E_NAMES) <= set(names)
    _check_header(names, _E2E_NAMES if is_e2e else (columns.input, *columns.targets), f"{path}:1")
    for line, cells in rows:
        where = f"{path}:{line}"
        if len(cells) != len(names):
            raise InvalidRequest(
                f"{where}: the row has {len(cells)} cells, but the header has {len(names)}"
            )
        if is_e2e:
            row = dict(zip(names, cells, strict=True))
            target = checked_text(row["ref"], "`ref`", where).strip()
            yield Example(linearise_representation(row["mr"], where), (target,), line)
        else:
            yield from_record(_record(names, cells, columns), columns, line, where)


def _check_header(names: list[str], wanted: tuple[str, ...], where: str) -> None:
    if len(set(names)) != len(names):
        raise InvalidRequest(f"{where}: two columns have one name")
    if missing := [name for name in wanted if name not in names]:
        raise InvalidRequest(
            f"{where}: there is no column `{missing[0]}`; the header has {', '.join(names)}."
            f" {_advice(names)}"
        )


def _advice(names: list[str]) -> str:
    if len(names) == 1 and ";" in names[0]:
        return "Cells seem to be separated by semicolons; save the table with commas or tabs (.tsv)"
    if len(names) == 1 and "\t" in names[0]:
        return "Cells seem to be separated by tabs; give --format tsv"
    if len(names) == 1 and "," in names[0]:
        return "Cells seem to be separated by commas; give --format csv"
    return "Say which column is the input (--input-column) and which are targets (--target-column)"


def _record(names: list[str], cells: list[str], columns: Columns) -> dict[str, object]:
    record: dict[str, object] = dict(zip(names, cells, strict=True))
    for name, cell in record.items():
        if name in ("targets", "outputs"):
            record[name] = [cell]  # a cell is one text
        elif name in columns.targets and not str(cell).strip():
            record[name] = None
    return record


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The line where each row that is not blank begins, and its cells."""
    reader = csv.reader(
        (text + "\n" for _, text in read_lines(path)), delimiter=delimiter, strict=True
    )
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise InvalidRequest(f"{path}:{line}: the row cannot be read: {error}") from error
