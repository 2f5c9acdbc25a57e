"""A run on summaries: outputs have the authors' lengths, and sources are cut as in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BartForConditionalGeneration

from app.datasets.example import Example
from app.evaluation.evaluator import decode_texts, running_engine
from app.evaluation.scores import Scores, score_texts
from app.experiments import execution
from app.experiments.data import ExperimentData
from app.experiments.execution import executor
from app.experiments.plan import RunSettings
from app.experiments.results import RunResult
from app.experiments.tasks import EXPERIMENT_TASKS
from app.model.frozen import FrozenModel

WORDS = "the quick brown fox jumps over the lazy dog"


def test_summaries_are_decoded_as_by_transformers_with_the_authors_lengths(
    tiny_bart: FrozenModel, tiny_bart_folder: Path
) -> None:
    decoding = EXPERIMENT_TASKS["xsum"].decoding
    with running_engine(tiny_bart) as engine:
        (text,) = decode_texts(engine, [Example(WORDS, ("",), 1)], decoding=decoding)
    plain = BartForConditionalGeneration.from_pretrained(tiny_bart_folder).eval()
    found = plain.generate(
        torch.tensor([tiny_bart.text.encode(WORDS)]),
        **{"num_beams": 6, "min_length": 11, "max_length": 62, "length_penalty": 0.8},
        early_stopping=False,
        do_sample=False,
    )
    assert text == tiny_bart.text.decode(found[0].tolist()[1:]).strip()
    assert EXPERIMENT_TASKS["xsum"].max_source == 512


def test_an_answer_has_no_banned_token(
    tiny_gpt2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def kept(texts: Sequence[str], *given: Any) -> Scores:
        said.extend(texts)
        return score_texts(texts, *given)

    monkeypatch.setattr(execution, "score_texts", kept)
    data = ExperimentData("d", [Example(WORDS, (WORDS,), 1)], [Example(WORDS, ("fox",), 1)])
    how = {"decoding": {"max_tokens": 9}, "metrics": ("bleu",), "device": "cpu"}
    settings = RunSettings("baselines", "prefix", length=2, batch_size=1, max_steps=1, lr=1e-4)
    model = str(tiny_gpt2_folder)
    names: list[str] = []

    def answer(*banned: str) -> str:
        with executor(model, data, tmp_path, banned=banned, **how) as running:  # type: ignore[arg-type]
            names.append(running.run(settings, lambda _: None).run)
        return said.pop()

    usual = answer()
    letters = {letter for letter in usual if letter.isascii() and letter.isalpha()}
    assert letters
    assert not letters & set(answer(*letters))
    assert answer("more than one token") == usual
    assert names[0] == names[2] != names[1]


def with_more(data: ExperimentData, more: str) -> ExperimentData:
    """The data with `more` at the end of each source."""
    parts = (
        [replace(example, input=example.input + more) for example in part]
        for part in (data.train, data.test)
    )
    return ExperimentData("long", *parts)


@pytest.mark.parametrize("method", ["prefix", "lora"])
def test_what_is_cut_off_a_source_changes_neither_training_nor_answers(
    method: str, tiny_bart: FrozenModel, tiny_bart_folder: Path, tmp_path: Path
) -> None:
    train = [Example(WORDS, ("the mat", "a mat"), 1)]
    data = ExperimentData("short", train, [Example(WORDS, ("the fox jumps",), 1)])
    most = len(tiny_bart.text.encode(WORDS))
    settings = RunSettings("baselines", method, length=2, batch_size=2, max_steps=3, lr=0.02)
    how = {"decoding": {"max_tokens": 9}, "metrics": ("bleu",), "device": "cpu"}

    def ran(used: ExperimentData, max_source: int) -> RunResult:
        folder = tmp_path / f"{used.name}-{max_source}"
        model = str(tiny_bart_folder)
        with executor(model, used, folder, max_source=max_source, **how) as running:  # type: ignore[arg-type]
            return running.run(settings, lambda _: None)

    long = with_more(data, " and the cat sat on the mat")
    short, cut, whole = ran(data, most), ran(long, most), ran(long, 0)
    assert (cut.last_loss, cut.scores) == (short.last_loss, short.scores)
    assert whole.last_loss != short.last_loss
    assert len({short.run, cut.run, whole.run}) == 3
