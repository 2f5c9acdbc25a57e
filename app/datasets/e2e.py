"""The E2E challenge's formats: `name[X], eatType[Y]`, and the authors' lines `src || tgt`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from app.datasets.example import Example, checked_text
from app.datasets.lines import read_lines
from app.errors import InvalidRequest

SEPARATOR = "||"
_ATTRIBUTE = re.compile(r"\s*([^\[\],]+)\[([^\[\]]*)\]\s*(?:,|$)")


def read_e2e_lines(path: Path) -> Iterator[Example]:
    """The authors' text files: one `src || tgt` a line; the source is kept as it is written."""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        source, separator, target = line.partition(SEPARATOR)
        if not separator:
            raise InvalidRequest(
                f"{where}: there is no `{SEPARATOR}` between source and target in the line"
            )
        yield Example(
            checked_text(source, "the source", where).strip(),
            (checked_text(target, "the target", where).strip(),),
            number,
        )


def linearise_representation(text: str, where: str) -> str:
    """A meaning representation `name[X], eatType[Y]` as `name : X | eatType : Y`.

    The form is that of Li & Liang (2021), with the challenge's own names of attributes.
    InvalidRequest says `where` a text has another form.
    """
    checked_text(text, "the meaning representation", where)
    parts, end = [], 0
    while end < len(text):
        found = _ATTRIBUTE.match(text, end)
        if found is None:
            raise InvalidRequest(
                f"{where}: the meaning representation must look like `name[X], eatType[Y]`"
            )
        parts.append(f"{found[1].strip()} : {found[2].strip()}")
        end = found.end()
    return " | ".join(parts)
