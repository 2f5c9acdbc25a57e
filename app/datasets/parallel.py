"""Two files side by side: line n of `NAME.source` belongs to line n of `NAME.target` (XSum)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from app.datasets.example import Example, checked_text
from app.datasets.lines import read_lines
from app.errors import InvalidRequest

SUFFIXES = (".source", ".target")


def read_parallel(path: Path) -> Iterator[Example]:
    """The pairs of two files, of which `path` names either. InvalidRequest names file and line."""
    source, target = parallel_files(path)
    for left, right in zip_longest(read_lines(source), read_lines(target)):
        if left is None or right is None:
            number, _ = left or right
            shorter = source if left is None else target
            raise InvalidRequest(
                f"{shorter}:{number}: the line is missing; {source.name} and {target.name} must"
                " have equally many lines"
            )
        (number, read), (_, written) = left, right
        yield Example(
            checked_text(read, "the source", f"{source}:{number}").strip(),
            (checked_text(written, "the target", f"{target}:{number}").strip(),),
            number,
        )


def parallel_files(path: Path) -> tuple[Path, Path]:
    """The file of sources and the file of targets, of which `path` is one."""
    source, target = (path.with_suffix(suffix) for suffix in SUFFIXES)
    return source, target
