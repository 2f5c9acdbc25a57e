"""Training, development and held-out files for the prefix on abstracts, cut from SciTLDR.

The training targets are sentences of the abstracts: those that `SentenceRanker` picks, without
"In this paper," and the like. An abstract is left out if that sentence does not begin with "We",
"Our" or "This paper". So every target is a whole sentence about the paper, and a small model can
copy it. The development part, cut from the training split, is for choosing data, steps and
decoding.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from app.demo.records import clean, read_lines
from app.demo.scitldr.ranker import SentenceRanker
from app.demo.scitldr.sentences import without_opening

DEVELOPMENT_SHARE = 0.15
"""Share of the training split that is the development part, chosen by a hash of the abstract."""
_ABOUT_THE_PAPER = re.compile(r"(?:We|Our|This (?:paper|work|article))\b")
Record = dict[str, Any]


def write_abstracts(data: Path, out: Path) -> dict[str, int]:
    """Write the three parts, and what the ranker picks from each held-out abstract.

    Held out is the development split without abstracts that are also in the training split.
    Returns the number of lines by file name.
    """
    train, dev = (_records(data / "scitldr" / f"{part}.jsonl") for part in ("train", "dev"))
    parts: dict[str, list[Record]] = {"train": [], "valid": []}
    for record in train.values():
        parts["valid" if _is_development(record["input"]) else "train"].append(record)
    held_out = [record for abstract, record in dev.items() if abstract not in train]
    ranker = _trained(parts["train"])
    said = [{**record, "targets": [_said(ranker, record)]} for record in parts["train"]]
    picked = [record for record in said if _ABOUT_THE_PAPER.match(record["targets"][0])]
    out.mkdir(parents=True, exist_ok=True)
    lines = {
        "scitldr-train.jsonl": _json_lines(picked),
        "scitldr-valid.jsonl": _json_lines(parts["valid"]),
        "scitldr-held-out.jsonl": _json_lines(held_out),
        "scitldr-held-out-picked.txt": [_said(ranker, record) for record in held_out],
    }
    for name, of_file in lines.items():
        (out / name).write_text("".join(line + "\n" for line in of_file), encoding="utf-8")
    return {name: len(of_file) for name, of_file in lines.items()}


def _trained(records: Sequence[Record]) -> SentenceRanker:
    ranker = SentenceRanker()
    ranker.train(
        [record["input"] for record in records], [record["targets"][0] for record in records]
    )
    return ranker


def _said(ranker: SentenceRanker, record: Record) -> str:
    return without_opening(ranker.pick(record["input"]))


def _json_lines(records: Iterable[Record]) -> list[str]:
    return [json.dumps(record, ensure_ascii=False) for record in records]


def _records(path: Path) -> dict[str, Record]:
    """The first record of each abstract, by abstract, in the form that pretraining used."""
    found: dict[str, Record] = {}
    for record in read_lines(path):
        abstract = clean(record["input"])
        targets = list(map(clean, record["targets"]))
        found.setdefault(abstract, {"input": abstract, "targets": targets})
    return found


def _is_development(abstract: str) -> bool:
    hashed = int.from_bytes(hashlib.sha256(abstract.encode()).digest()[:4])
    return hashed < DEVELOPMENT_SHARE * 2**32
