"""WebNLG's XML files, read without document types and entities, which XML attacks need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from xml.parsers import expat

from app.datasets.example import Example, checked_text
from app.datasets.lines import read_document
from app.datasets.triples import Triple, is_good, linearise_webnlg
from app.errors import InvalidRequest

MAX_DEPTH = 16
MAX_TEXT = 1 << 20
"""Characters of one element's own text."""

_BLOCK = 1 << 16


@dataclass
class _Element:
    """An open element: its attributes and the text in it so far."""

    name: str
    attributes: dict[str, str]
    text: list[str] = field(default_factory=list)
    size: int = 0
    has_children: bool = False


@dataclass
class _Entry:
    """What is known of an `<entry>` that is open."""

    line: int
    attributes: dict[str, str]
    triples: list[Triple] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


class _Reader:
    """Collects the examples of one file from the parser's events."""

    def __init__(self, path: Path) -> None:
        self.examples: list[Example] = []
        self._path = path
        self._open: list[_Element] = []
        self._entry: _Entry | None = None
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._doctype
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters

    def read(self) -> None:
        """Parse the file. InvalidRequest names file and line of what is wrong."""
        data = read_document(self._path)
        try:
            for start in range(0, len(data) + 1, _BLOCK):
                block = data[start : start + _BLOCK]
                self._parser.Parse(block, start + _BLOCK > len(data))
        except expat.ExpatError as error:
            raise InvalidRequest(
                f"{self._path}:{error.lineno}: the file is not XML: {expat.ErrorString(error.code)}"
            ) from error

    @property
    def _where(self) -> str:
        return f"{self._path}:{self._parser.CurrentLineNumber}"

    def _doctype(self, *_: Any) -> NoReturn:
        raise InvalidRequest(
            f"{self._where}: the file declares a document type, which is refused because entities"
            " can attack a reader; remove the DOCTYPE"
        )

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise InvalidRequest(f"{self._where}: more than {MAX_DEPTH} elements inside each other")
        if self._open:
            self._open[-1].has_children = True
        self._open.append(_Element(name, attributes))
        if name == "entry":
            self._entry = _Entry(self._parser.CurrentLineNumber, attributes)

    def _characters(self, text: str) -> None:
        if self._open:
            element = self._open[-1]
            element.size += len(text)
            if element.size > MAX_TEXT:
                raise InvalidRequest(f"{self._where}: a text is longer than {MAX_TEXT} characters")
            element.text.append(text)

    def _end(self, name: str) -> None:
        element = self._open.pop()
        entry, text = self._entry, "".join(element.text).strip()
        if entry is None:
            return
        if name == "mtriple":
            entry.triples.append(self._triple(text))
        elif name in ("lex", "text"):
            self._lexicalisation(entry, element, text)
        elif name == "entry":
            self._finish(entry)
            self._entry = None

    def _lexicalisation(self, entry: _Entry, element: _Element, text: str) -> None:
        """Keep a good English text; enriched releases put it into `<lex><text>`."""
        lex = element if element.name == "lex" else self._open[-1]
        if lex.name != "lex" or (element is lex and lex.has_children):
            return
        if is_good(lex.attributes.get("comment")) and lex.attributes.get("lang", "en") == "en":
            entry.texts.append(checked_text(text, "a lexicalisation", self._where))

    def _triple(self, text: str) -> Triple:
        parts = [part.strip() for part in text.split(" | ")]
        if len(parts) != 3 or not all(parts):
            raise InvalidRequest(f"{self._where}: a triple must look like `S | p | O`")
        return parts[0], parts[1], parts[2]

    def _finish(self, entry: _Entry) -> None:
        if not entry.triples:
            raise InvalidRequest(f"{self._path}:{entry.line}: the entry has no `mtriple`")
        if entry.texts:
            named = {name: entry.attributes.get(name) for name in ("category", "size")}
            attributes = {name: (value,) for name, value in named.items() if value}
            source = linearise_webnlg(entry.triples)
            self.examples.append(Example(source, tuple(entry.texts), entry.line, attributes))


def read_webnlg_xml(path: Path) -> Iterator[Example]:
    """The examples of a WebNLG file, in any of its releases (2017, enriched, 2020).

    The modified triples are the input; good English lexicalisations are the targets. Entries
    without any are left out.
    """
    reader = _Reader(path)
    reader.read()
    yield from reader.examples
