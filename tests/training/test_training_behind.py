"""A prefix trained behind a frozen one sees exactly what a server composes of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.engine.config import EngineConfig
from app.errors import InvalidRequest
from app.evaluation.text_pairs import TokenPair
from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix, PrefixMetadata
from app.training.initial import words_keys_values, words_token_ids
from app.training.objective import loss_of
from app.training.progress import Report
from app.training.recipe import Recipe
from app.training.trainer import Trainer
from tests.engine.harness import SteppedEngine, make_request
from tests.tiny import random_prefix

PAIRS = [TokenPair((5, 6, 7), (8, 9, 2)), TokenPair((21, 22), (23, 24, 25, 2))]
PROMPT = (11, 12, 13, 14)
RECIPE = Recipe(length=3, hidden=16, batch_size=2, max_steps=4, lr=1e-2, model_dropout=False)
MAX_TOKENS = 6


def quiet(_: Report) -> None:
    """No progress."""


@pytest.fixture(params=["gpt2", "llama", "bart", "shifted bart"])
def frozen(
    request: pytest.FixtureRequest, tiny_models: Mapping[str, FrozenModel], tiny_bart: FrozenModel
) -> tuple[FrozenModel, Prefix]:
    """A model and a task's prefix on it; with an encoder, in its three kinds of attention."""
    if "bart" not in request.param:
        model = tiny_models[request.param]
        return model, random_prefix(model, 4, seed=7)
    shift = 5 if request.param == "shifted bart" else 0
    task = random_prefix(tiny_bart, 5, encoder=3, cross=2, position_offset=shift, seed=7)
    return tiny_bart, task


def as_user(trainer: Trainer) -> Prefix:
    """What was trained, as the server loads it: alone."""
    offset = 0 if trainer.model.encoder_decoder is not None else trainer.recipe.positions
    return Prefix(trainer.present(), PrefixMetadata(offset))


def test_the_loss_of_training_is_that_of_the_served_composition(
    frozen: tuple[FrozenModel, Prefix], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, task = frozen
    trainer = Trainer(model, PAIRS, RECIPE, on=task)
    trainer.run(quiet)
    served = SteppedEngine(model, EngineConfig(), monkeypatch)
    prefixes = (task, as_user(trainer))
    served.add(make_request("composed", PROMPT, MAX_TOKENS, prefixes))
    served.add(make_request("task", PROMPT, MAX_TOKENS, prefixes[:1]))
    served.run()
    for name, loss_on in (
        ("composed", lambda pair: trainer.loss_on([pair])),
        ("task", lambda pair: loss_of(model, {}, [pair], on=task)),
    ):
        tokens = served.tokens(name)
        logits = torch.stack(served.logits[name, 0])
        steps = range(len(tokens))
        summed = -sum(logits[step].log_softmax(-1)[tokens[step]].item() for step in steps)
        loss = loss_on(TokenPair(PROMPT, tuple(tokens)))
        per = len(tokens) if model.encoder_decoder is not None else 1
        assert loss.mean.item() == pytest.approx(summed / per, abs=1e-4), name
    assert served.tokens("composed") != served.tokens("task")


def test_only_the_users_prefix_is_trained_and_it_learns(
    frozen: tuple[FrozenModel, Prefix],
) -> None:
    model, task = frozen
    before = {name: (part.keys.clone(), part.values.clone()) for name, part in task.modules.items()}
    recipe = replace(RECIPE, hidden=64, max_steps=60, lr=2e-2)
    trainer = Trainer(model, PAIRS, recipe, on=task)
    trainer.run(quiet)
    for name, (keys, values) in before.items():
        assert torch.equal(task.modules[name].keys, keys)
        assert torch.equal(task.modules[name].values, values)
    assert {part.length for part in trainer.result().values()} == {3}
    progress = trainer.progress()
    assert progress.base == pytest.approx(loss_of(model, {}, PAIRS, on=task).mean.item(), rel=1e-4)
    assert progress.last < 0.7 * min(progress.first, progress.base)
    assert progress.baseline == "task's prefix alone"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_words_read_behind_the_task_act_as_words_after_it(
    tiny_models: Mapping[str, FrozenModel], family: str
) -> None:
    model = tiny_models[family]
    task = random_prefix(model, 4, seed=7)
    words = words_keys_values(model, "the lazy dog", 0, task)
    read = tuple(words_token_ids(model, "the lazy dog", 0))
    spelled = TokenPair((*read, *PAIRS[0].prompt_ids), PAIRS[0].target_ids)
    expected = loss_of(model, {}, [spelled], on=task).mean.item()
    found = loss_of(model, words, PAIRS[:1], on=task).mean.item()
    assert found == pytest.approx(expected, rel=1e-5)
    elsewhere = words_keys_values(model, "the lazy dog", 0)
    other = loss_of(model, elsewhere, PAIRS[:1], on=task).mean.item()
    assert other != pytest.approx(expected, rel=1e-3)


def test_words_of_an_encoder_are_read_behind_the_task(tiny_bart: FrozenModel) -> None:
    task = random_prefix(tiny_bart, 5, encoder=3, cross=2, position_offset=0, seed=7)
    behind = words_keys_values(tiny_bart, "the lazy dog", 0, task)
    alone = words_keys_values(tiny_bart, "the lazy dog", 0)
    for name in ("decoder", "encoder", "cross"):
        assert behind[name].keys.shape == alone[name].keys.shape
        assert not torch.allclose(behind[name].keys, alone[name].keys, atol=1e-3), name


def test_a_start_from_the_tasks_mean_is_near_it_and_every_position_differs(
    frozen: tuple[FrozenModel, Prefix],
) -> None:
    model, task = frozen
    recipe = replace(RECIPE, method="prefix-direct", initial_task_mean=True)
    trainer = Trainer(model, PAIRS, recipe, on=task)
    trainer.initialise()
    for name, made in trainer.present().items():
        for mine, theirs in (
            (made.keys, task.modules[name].keys),
            (made.values, task.modules[name].values),
        ):
            away = mine - theirs.mean(dim=2, keepdim=True)
            assert 0.05 < float(away.square().mean().sqrt()) < 0.15  # values have deviation 1
            assert not torch.allclose(mine[:, :, 0], mine[:, :, 1], atol=1e-3)
    again = Trainer(model, PAIRS, recipe, on=task)
    again.initialise()
    first, second = trainer.present()["decoder"].keys, again.present()["decoder"].keys
    assert torch.equal(first, second)


def test_virtual_tokens_are_read_behind_the_task(tiny_gpt2: FrozenModel) -> None:
    task = random_prefix(tiny_gpt2, 4, seed=7)
    recipe = replace(RECIPE, method="embedding")
    behind = Trainer(tiny_gpt2, PAIRS, recipe, on=task).present()["decoder"]
    alone = Trainer(tiny_gpt2, PAIRS, recipe).present()["decoder"]
    assert not torch.allclose(behind.keys, alone.keys, atol=1e-3)


def test_a_run_is_not_continued_on_another_task(tiny_gpt2: FrozenModel, tmp_path: Path) -> None:
    place = tmp_path / "run.checkpoint"
    tasks = [random_prefix(tiny_gpt2, 4, seed=seed) for seed in (1, 2)]
    Trainer(tiny_gpt2, PAIRS, RECIPE, on=tasks[0], checkpoint=place).run(quiet, until=2)
    assert Trainer(tiny_gpt2, PAIRS, RECIPE, on=tasks[0], checkpoint=place).resume()
    for on in (tasks[1], None):
        with pytest.raises(InvalidRequest, match="belongs to another run"):
            Trainer(tiny_gpt2, PAIRS, RECIPE, on=on, checkpoint=place).resume()


@pytest.mark.parametrize(
    ("changes", "on", "message"),
    [
        ({"method": "lora"}, True, "trains no prefix"),
        ({"method": "infix"}, True, "trains no prefix"),
        ({"initial_task_mean": True}, False, "give one as `on`"),
        ({"initial_task_mean": True, "initial_words": "x"}, True, "give one of them"),
        ({"initial_task_mean": True, "method": "embedding"}, True, "cannot start from it"),
    ],
)
def test_impossible_settings_are_refused(
    tiny_gpt2: FrozenModel, changes: dict[str, object], on: bool, message: str
) -> None:
    task = random_prefix(tiny_gpt2, 4) if on else None
    recipe = replace(RECIPE, **changes)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=message):
        Trainer(tiny_gpt2, PAIRS, recipe, on=task).initialise()


def test_the_mean_of_a_module_that_the_task_lacks_is_refused(tiny_bart: FrozenModel) -> None:
    task = random_prefix(tiny_bart, 5, position_offset=0)
    recipe = replace(RECIPE, initial_task_mean=True)
    with pytest.raises(InvalidRequest, match="encoder, cross"):
        Trainer(tiny_bart, PAIRS, recipe, on=task).initialise()
