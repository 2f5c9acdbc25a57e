"""JSON documents: WebNLG's and DART's triples of subject, property and object, or records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from app.datasets.example import Example, checked_text
from app.datasets.lines import read_text
from app.datasets.records import Columns, from_record
from app.errors import InvalidRequest

GOOD = "good"
"""WebNLG's word for a lexicalisation that its reviewers accepted."""

Triple = tuple[str, str, str]


def linearise_webnlg(triples: Iterable[Triple]) -> str:
    """` | S : p : O | S2 : p2 : O2`, as Li & Liang (2021) do: a separator precedes each triple."""
    return "".join(f" | {subject} : {name} : {value}" for subject, name, value in triples)


def linearise_dart(triples: Iterable[Triple]) -> str:
    """`S : p : O | S2 : p2 : O2` with relations in lower case, as Li & Liang (2021) do."""
    return " | ".join(f"{subject} : {name.lower()} : {value}" for subject, name, value in triples)


def read_json_document(path: Path, columns: Columns) -> Iterator[Example]:
    """The examples of WebNLG's 2017 challenge JSON, of DART's JSON or of a list of records.

    `line` is the number of the entry. InvalidRequest names file and entry. WebNLG's
    lexicalisations that are not good are left out, and entries without any good one with them.
    """
    document = _parsed(path)
    if isinstance(document, dict) and isinstance(document.get("entries"), list):
        for number, entry in enumerate(document["entries"], start=1):
            yield from _webnlg_entry(entry, number, f"{path}: entry {number}")
    elif isinstance(document, list):
        for number, entry in enumerate(document, start=1):
            where = f"{path}: entry {number}"
            if isinstance(entry, dict) and "tripleset" not in entry:
                yield from_record(entry, columns, number, where)
            else:
                yield _dart_entry(entry, number, where)
    else:
        raise InvalidRequest(
            f"{path}: a JSON file holds WebNLG's `entries`, DART's list of triple sets or a list of"
            " objects with `input` and `target`; with one object a line, name the file .jsonl"
        )


def _parsed(path: Path) -> Any:
    try:
        return json.loads(read_text(path), parse_constant=_no_constant)
    except RecursionError:
        raise InvalidRequest(f"{path}: the JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"{path}:{error.lineno}: the file is not JSON: {error.msg}") from None
    except ValueError as error:
        raise InvalidRequest(f"{path}: the file is not JSON: {error}") from None


def _no_constant(literal: str) -> NoReturn:
    raise ValueError(f"it has {literal}, which is no number of JSON")


def _webnlg_entry(entry: Any, number: int, where: str) -> Iterator[Example]:
    """The entry's example; an entry stands in an object under its number."""
    try:
        ((_, facts),) = entry.items()
        triples = [
            _triple((each["subject"], each["property"], each["object"]), where)
            for each in facts["modifiedtripleset"]
        ]
        lexicalisations = facts["lexicalisations"]
        texts = [each["lex"] for each in lexicalisations if is_good(each.get("comment"))]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(
            f'{where} must look like {{"1": {{"modifiedtripleset": […], "lexicalisations": […]}}}}'
        ) from error
    if texts:
        attributes = {name: (str(facts[name]),) for name in ("category", "size") if name in facts}
        yield _example(linearise_webnlg(triples), texts, number, where, attributes)


def is_good(comment: object) -> bool:
    """Whether reviewers accepted a lexicalisation; later releases of WebNLG say nothing of it."""
    return comment is None or str(comment).strip().lower() in ("", GOOD)


def _dart_entry(entry: Any, number: int, where: str) -> Example:
    try:
        triples = [_triple(tuple(each), where) for each in entry["tripleset"]]
        texts = [each["text"] for each in entry["annotations"]]
        sources = tuple(
            dict.fromkeys(str(each["source"]) for each in entry["annotations"] if "source" in each)
        )
    except (KeyError, TypeError) as error:
        raise InvalidRequest(
            f'{where} must look like {{"tripleset": [[S, r, O]], "annotations": [{{"text": …}}]}}'
            ' or {"input": …, "target": …}'
        ) from error
    return _example(linearise_dart(triples), texts, number, where, {"source": sources})


def _triple(parts: tuple[Any, ...], where: str) -> Triple:
    if len(parts) != 3 or not all(isinstance(part, str) for part in parts):
        raise InvalidRequest(f"{where}: a triple must have three texts")
    subject, name, value = (checked_text(part, "a part of a triple", where) for part in parts)
    return subject, name, value


def _example(
    source: str,
    texts: list[Any],
    number: int,
    where: str,
    attributes: Mapping[str, tuple[str, ...]],
) -> Example:
    if not source or not texts or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(f"{where} must have at least one triple and one text")
    targets = tuple(checked_text(text, "every target", where).strip() for text in texts)
    return Example(source, targets, number, attributes)
