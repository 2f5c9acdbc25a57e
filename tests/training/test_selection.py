"""The metric of a run selects its best state, by answers to the held-out inputs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from app.cli.train import train
from app.errors import InvalidRequest
from app.evaluation.evaluator import DecodedText, Evaluator
from app.model.frozen import FrozenModel
from app.training.progress import Report, RunState
from app.training.recipe import METRICS, Recipe
from app.training.session import Session, TrainingJob

FOX, DOG = "the quick brown animal is a fox that jumps", "a lazy one is the dog"
LINES = [
    {"input": "name : fox | colour : brown", "targets": [FOX]},
    {"input": "name : dog | mood : lazy", "targets": [DOG]},
]
TEXTS = (
    # one whole target: the most words in a row
    (FOX.replace("fox", "cat"), "w"),
    # every other word of both: the longest common sequences
    ("the x quick x x animal x is x a x that x jumps", "a x one x is x the x"),
    # the values alone
    ("brown fox", "lazy dog"),
    ("w", "w"),
)
"""What the states after the four steps say to the two inputs."""
BEST = {"bleu": 1, "rouge_l": 2, "slots": 3, "loss": 4}
"""The step whose state is the best by each metric; the loss falls all the time."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    return path


def job(data: Path, metric: str, **settings: int) -> TrainingJob:
    recipe = Recipe(
        length=3,
        hidden=16,
        batch_size=2,
        lr=5e-3,
        warmup_steps=0,
        metric=metric,
        validate_every=1,
        **settings,
    )
    return TrainingJob("unused", data, recipe, data.with_name("run.checkpoint"), valid=data)


def train_with(
    session: Session, texts: Sequence[tuple[str, str]], patch: pytest.MonkeyPatch
) -> list[tuple[Report, torch.Tensor]]:
    """The reports of a run and the keys of each step's prefix; `texts` are its answers by step."""
    model, scripted = session.model, iter(texts)
    places = [tuple(model.text.render(session.template, str(line["input"]))) for line in LINES]

    async def answers(_: Evaluator, prompts: Sequence[tuple[int, ...]]) -> list[DecodedText]:
        said = next(scripted)
        return [DecodedText(said[places.index(tuple(ids))], ()) for ids in prompts]

    patch.setattr(Evaluator, "answers", answers)
    seen: list[tuple[Report, torch.Tensor]] = []
    session.train(
        lambda done: seen.append((done, session.trainer.present()["decoder"].keys.clone()))
    )
    return seen


@pytest.mark.parametrize("metric", METRICS)
def test_the_state_is_kept_whose_answers_are_the_best_by_the_metric(
    metric: str, tiny_gpt2: FrozenModel, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(job(data, metric, max_steps=len(TEXTS)), tiny_gpt2)
    seen = train_with(session, TEXTS, monkeypatch)
    scores = [done.validation_score for done, _ in seen]
    losses = [done.validation_loss or 0.0 for done, _ in seen]
    assert losses == sorted(losses, reverse=True)
    if metric != "loss":
        best = max(score for score in scores if score is not None)
        assert scores.index(best) == BEST[metric] - 1, scores
    kept = session.trainer.result()["decoder"].keys
    assert [torch.equal(kept, keys) for _, keys in seen].index(True) == BEST[metric] - 1


def test_slots_are_the_share_of_answers_that_say_all_values_and_invent_none(
    tiny_gpt2: FrozenModel, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [("brown fox", "dog"), ("brown fox", "lazy dog"), ("a lazy brown fox", "lazy dog")]
    session = Session(job(data, "slots", max_steps=3), tiny_gpt2)
    seen = train_with(session, texts, monkeypatch)
    assert [done.validation_score for done, _ in seen] == [50.0, 100.0, 50.0]


def test_the_run_ends_when_the_metric_no_longer_improves(
    tiny_gpt2: FrozenModel, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [("brown fox", "lazy dog"), *[("w", "w")] * 9]
    for metric in ("rouge_l", "slots"):
        session = Session(job(data, metric, max_steps=10, early_stopping=2), tiny_gpt2)
        train_with(session, texts, monkeypatch)
        assert session.trainer.stopped_early
        assert session.trainer.step == 3


def test_of_states_with_equal_scores_the_one_with_the_lower_loss_is_better() -> None:
    state = RunState()
    assert state.takes_best(loss=3.0, score=0.0, patience=2)
    assert state.takes_best(loss=2.0, score=0.0, patience=2)
    assert not state.takes_best(loss=2.5, score=0.0, patience=2)
    assert state.takes_best(loss=9.0, score=1.0, patience=2)
    assert not state.takes_best(loss=1.0, score=0.0, patience=2)
    assert (state.best_loss, state.best_score, state.stopped) == (9.0, 1.0, False)
    assert not state.takes_best(loss=9.0, score=1.0, patience=2)
    assert state.stopped


def test_slots_need_inputs_that_have_some(tiny_gpt2: FrozenModel, data: Path) -> None:
    with data.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"input": "An abstract.", "targets": ["x"]}) + "\n")
    with pytest.raises(InvalidRequest) as refused:
        Session(job(data, "slots", max_steps=1), tiny_gpt2)
    assert f"{data}:3: metric `slots` needs inputs of fields" in str(refused.value)
    Session(job(data, "rouge_l", max_steps=1), tiny_gpt2)


@pytest.mark.parametrize("metric", ["rouge_l", "slots"])
def test_the_command_selects_by_answers_of_the_engine(
    metric: str, tiny_gpt2_folder: Path, data: Path, tmp_path: Path
) -> None:
    application = typer.Typer(pretty_exceptions_enable=False)
    application.command()(train)
    arguments = [
        *("--model", str(tiny_gpt2_folder), "--data", str(data), "--valid", str(data)),
        *("--name", "animals", "--length", "3", "--hidden", "16", "--steps", "2"),
        *("--metric", metric, "--max-tokens", "6", "--device", "cpu"),
        *("--out", str(tmp_path / "animals.safetensors")),
        *("--checkpoint", str(tmp_path / "animals.checkpoint")),
    ]
    ran = CliRunner().invoke(application, arguments)
    assert ran.exit_code == 0, ran.output
    assert re.search(rf"validation loss [\d.]+, {metric} [\d.]+", ran.stderr), ran.stderr
