"""The options of commands that read data: format, columns, parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from app.datasets.example import Example
    from app.datasets.reader import ReadOptions

Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Format of the data: jsonl, csv, tsv, e2e, json, xml, parallel or datasets; by default"
        " name and content decide.",
    ),
]
InputColumn = Annotated[str | None, typer.Option(help="Column of the input (default `input`).")]
TargetColumns = Annotated[
    list[str] | None,
    typer.Option("--target-column", help="Column of a target; may be repeated."),
]
Split = Annotated[str | None, typer.Option(help="Split of a `datasets` folder with several.")]
Subset = Annotated[
    int | None, typer.Option(help="Use so many pairs, drawn at random; smaller ones are nested.")
]
SubsetSeed = Annotated[int, typer.Option(help="Seed of the subset.")]
HoldOutOption = Annotated[
    str | None,
    typer.Option(
        "--hold-out",
        help="`category=Astronaut,Airport` or `webnlg-unseen`: which examples are unseen.",
    ),
]


def read_data(
    path: Path, reading: ReadOptions, size: int | None, subset_seed: int
) -> list[Example]:
    """The examples, or a subset of `size`. InvalidRequest says what is wrong with them."""
    from app.datasets.reader import read_examples
    from app.datasets.splits import subset

    examples = read_examples(path, reading)
    return examples if size is None else subset(examples, size, subset_seed)


def read_options(
    data_format: str | None,
    input_column: str | None,
    target_columns: Sequence[str] | None,
    split: str | None,
) -> ReadOptions:
    """How a file is read, from the options of these names."""
    from app.datasets.reader import ReadOptions
    from app.datasets.records import Columns

    columns = Columns(input_column or Columns().input, tuple(target_columns or ()))
    return ReadOptions(data_format, columns, split)
