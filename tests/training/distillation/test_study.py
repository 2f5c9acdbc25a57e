"""The study measures each way to give a text against the whole text in the context."""

from __future__ import annotations

import csv
import json
from argparse import Namespace
from pathlib import Path

import pytest

from app.training.distillation.study import run
from app.training.distillation.study_texts import StudyText, facts

ROWS = [
    ("The_Fox_(story)", "author", "A._Writer", "The Fox was written by A. Writer."),
    ("Skipped", "author", "Nobody", "Every second fact is left out: Nobody wrote it."),
    ("Dog_Club", "numberOfMembers", "1500", "The Dog Club has 1,500 members."),
    ("The_Fox_(story)", "publisher", "Else", "A second fact of The Fox is left out; Else did it."),
    ("Cat", "region", "Mat", "An answer that the sentence lacks is left out."),
]


@pytest.fixture
def webnlg(tmp_path: Path) -> Path:
    path = tmp_path / "dev.jsonl"
    lines = [
        json.dumps({"input": f"{s} : {r} : {o}", "targets": [sentence], "size": 1})
        for s, r, o, sentence in ROWS
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_facts_become_a_text_with_questions(webnlg: Path) -> None:
    text = facts(webnlg)
    assert text.text == "The Fox was written by A. Writer. The Dog Club has 1,500 members."
    assert text.questions == (
        ("Who is the author of The Fox?", "A. Writer"),
        ("How many members does Dog Club have?", "1500"),
    )


def test_an_answer_is_right_if_the_exact_one_is_in_it() -> None:
    text = StudyText("t", "", (("", "1500"), ("", "A. Writer"), ("", "Mat")))
    assert text.score(["It has 1,500 members.", "by a.  writer", "the cat"]) == 2


def test_the_whole_text_has_no_divergence_and_every_system_a_row(
    webnlg: Path, tiny_gpt2_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results.csv"
    run(
        Namespace(
            **{"model": str(tiny_gpt2_folder), "webnlg": webnlg, "speeches": None},
            **{"texts": ["facts"], "lengths": [6], "exchanges": 8, "max_answer": 6},
            **{
                "steps": 2,
                "batch_size": 2,
                "lr": 1e-2,
                "start": "spread",
                "threads": 1,
                "out": out,
            },
        )
    )
    lines = out.read_text(encoding="utf-8").splitlines()
    rows = {row["system"]: row for row in csv.DictReader(lines)}
    assert list(rows) == ["no context", "whole text in the prompt", "from-text, cut", "distilled"]
    assert float(rows["whole text in the prompt"]["kl"]) == pytest.approx(0, abs=1e-3)
    assert float(rows["no context"]["kl"]) > 0.01
    assert rows["distilled"]["nbytes"] == rows["from-text, cut"]["nbytes"] != "0"
    assert rows["distilled"]["steps"] == "2"
    assert {row["questions"] for row in rows.values()} == {"2"}
