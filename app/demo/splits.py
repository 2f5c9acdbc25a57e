"""Training and validation files for the demo prefixes, cut from the data folder.

    python -m app.demo.splits --data FOLDER --out FOLDER

E2E is cut by `app/demo/e2e/split.py`, SciTLDR by `app/demo/scitldr/split.py`, DialogSum by a hash
of the dialogue. WebNLG is split by its own development split, with two files for each category.
DART keeps the lines that pretraining never saw. Official test splits are never read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from app.demo.e2e.split import write_files
from app.demo.records import DART_EXCLUDED, clean, is_held_out, read_lines
from app.demo.scitldr.split import write_abstracts

DIALOGUES_HELD_OUT_SHARE = 0.2
Record = dict[str, Any]


def split_all(data: Path, out: Path) -> dict[str, int]:
    """Write all files into `out`; return the number of lines by file name."""
    dart = [
        record
        for record in read_lines(data / "dart" / "dev.jsonl")
        if not DART_EXCLUDED & set(record["source"])
    ]
    dialogues = _one_line_each(read_lines(data / "dialogsum" / "dev.jsonl"))
    written = write_files(data, out)
    written |= _write_both(out, "dart", dart, lambda record: is_held_out(record["input"]))
    written |= _write_both(
        out,
        "dialogsum",
        dialogues,
        lambda record: _hash_share(record["input"]) < DIALOGUES_HELD_OUT_SHARE,
    )
    written |= write_abstracts(data, out)
    for split, part in (("train", "train"), ("dev", "valid")):
        records = list(read_lines(data / "webnlg" / f"{split}.jsonl"))
        for category in sorted({record["category"] for record in records}):
            name = f"webnlg-{category.lower()}-{part}.jsonl"
            of_category = [record for record in records if record["category"] == category]
            written[name] = _write(out / name, of_category)
    return written


def _hash_share(source: str) -> float:
    """A hash of the text as a number from 0 to 1."""
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:4]) / 2**32


def _write_both(
    out: Path, name: str, records: Iterable[Record], held_out: Callable[[Record], bool]
) -> dict[str, int]:
    parts: dict[str, list[Record]] = {"train": [], "valid": []}
    for record in records:
        parts["valid" if held_out(record) else "train"].append(record)
    return {
        f"{name}-{part}.jsonl": _write(out / f"{name}-{part}.jsonl", of_part)
        for part, of_part in parts.items()
    }


def _one_line_each(records: Iterable[Record]) -> list[Record]:
    """Passages in the form that pretraining used."""
    return [{**record, "input": clean(record["input"])} for record in records]


def _write(path: Path, records: Iterable[Record]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(
            {"input": record["input"], "targets": [clean(target) for target in record["targets"]]},
            ensure_ascii=False,
        )
        for record in records
    ]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m app.demo.splits", description=split_all.__doc__
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with e2e/, webnlg/, dart/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSONL files")
    options = parser.parse_args()
    split_all(options.data, options.out)


if __name__ == "__main__":
    _main()
