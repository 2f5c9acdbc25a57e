"""The trainer changes the prefix alone, learns, and resumes bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.errors import InvalidRequest
from app.model.dense import dense_logits
from app.model.frozen import FrozenModel
from app.prefix.prefix import KeyValues
from app.training.batches import IGNORED, collate
from app.training.data import TokenPair
from app.training.recipe import Recipe
from app.training.trainer import Report, Trainer

RECIPE = Recipe(length=3, hidden=32, batch_size=2, max_steps=12, lr=1e-2, validate_every=4)


def quiet(_: Report) -> None:
    """No progress."""


def test_gradient_reaches_every_parameter_and_no_weight_of_the_model(
    trainable: FrozenModel, pairs: list[TokenPair]
) -> None:
    trainer = Trainer(trainable, pairs, RECIPE)
    trainer.loss_on(pairs).mean.backward()
    for name, parameter in trainer.parameters.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in trainable.hf.parameters())


def test_training_leaves_the_base_model_as_it_is(
    trainable: FrozenModel, pairs: list[TokenPair]
) -> None:
    before = {name: tensor.clone() for name, tensor in trainable.hf.state_dict().items()}
    Trainer(trainable, pairs, RECIPE).run(quiet)
    assert not trainable.hf.training
    assert all(torch.equal(before[k], v) for k, v in trainable.hf.state_dict().items())


def test_loss_of_a_batch_is_that_of_its_rows_alone(
    trainable: FrozenModel, pairs: list[TokenPair]
) -> None:
    """Padding changes nothing, positions start after the prefix, sums are per sentence."""
    trainer = Trainer(trainable, pairs, RECIPE)
    prefix = trainer.parameters.result()["decoder"]
    alone = 0.0
    for pair in pairs:
        tokens = torch.tensor([pair.prompt_ids + pair.target_ids])
        logits = dense_logits(trainable, tokens, prefix, position_offset=3)[0].log_softmax(-1)
        start = len(pair.prompt_ids)
        alone -= sum(
            logits[place - 1, tokens[0, place]].item() for place in range(start, len(pair))
        )
    assert trainer.loss_on(pairs).mean.item() == pytest.approx(alone / len(pairs), rel=1e-4)


def test_four_pairs_are_learned_by_heart(trainable: FrozenModel, pairs: list[TokenPair]) -> None:
    recipe = replace(RECIPE, length=8, hidden=128, batch_size=4, max_steps=250, lr=2e-2)
    trainer = Trainer(trainable, pairs[:2] + pairs[3:], recipe)
    losses: list[float] = []
    trainer.run(lambda report: losses.append(report.loss))
    assert losses[-1] < 0.1 * losses[0]
    batch = collate(pairs[:1])
    logits = dense_logits(
        trainable, batch.input_ids, trainer.result()["decoder"], position_offset=8
    )
    chosen = batch.labels != IGNORED
    assert torch.equal(logits.argmax(-1)[chosen], batch.labels[chosen])


def test_an_interrupted_run_ends_bit_for_bit_as_one_in_one_go(
    trainable: FrozenModel, pairs: list[TokenPair], tmp_path: Path
) -> None:
    whole = Trainer(trainable, pairs, RECIPE, validation=pairs[:2])
    whole.run(quiet)
    place = tmp_path / "run.checkpoint"
    first = Trainer(trainable, pairs, RECIPE, validation=pairs[:2], checkpoint=place)
    first.run(quiet, until=5)
    second = Trainer(trainable, pairs, RECIPE, validation=pairs[:2], checkpoint=place)
    assert second.resume()
    assert second.step == 5
    second.run(quiet)
    for mine, theirs in (
        (second.parameters.result()["decoder"], whole.parameters.result()["decoder"]),
        (second.result()["decoder"], whole.result()["decoder"]),
    ):
        assert torch.equal(mine.keys, theirs.keys)
        assert torch.equal(mine.values, theirs.values)
    assert second.best_loss == whole.best_loss


def test_the_best_state_is_kept_unless_the_last_is_asked_for(
    trainable: FrozenModel, pairs: list[TokenPair]
) -> None:
    wild = replace(RECIPE, lr=0.5, validate_every=1, max_steps=8)
    seen: list[tuple[float, KeyValues]] = []
    trainer = Trainer(trainable, pairs, wild, validation=pairs)

    def remember(report: Report) -> None:
        assert report.validation_loss is not None
        seen.append((report.validation_loss, trainer.parameters.result()["decoder"]))

    trainer.run(remember)
    lowest, state = min(seen, key=lambda entry: entry[0])
    assert trainer.best_loss == lowest
    assert torch.equal(trainer.result()["decoder"].keys, state.keys)
    last = Trainer(trainable, pairs, replace(wild, keep="last"), validation=pairs)
    last.run(quiet)
    assert torch.equal(last.result()["decoder"].keys, seen[-1][1].keys)


def test_a_checkpoint_of_another_run_is_refused(
    trainable: FrozenModel, pairs: list[TokenPair], tmp_path: Path
) -> None:
    place = tmp_path / "run.checkpoint"
    Trainer(trainable, pairs, RECIPE, checkpoint=place, identity="a").run(quiet, until=1)
    for recipe, identity in ((replace(RECIPE, lr=1e-3), "a"), (RECIPE, "b")):
        other = Trainer(trainable, pairs, recipe, checkpoint=place, identity=identity)
        with pytest.raises(InvalidRequest, match="another run"):
            other.resume()
    place.write_bytes(b"rubbish")
    with pytest.raises(InvalidRequest, match="not a checkpoint"):
        Trainer(trainable, pairs, RECIPE, checkpoint=place, identity="a").resume()


def test_initial_words_lower_the_distance_to_them(
    trainable: FrozenModel, pairs: list[TokenPair]
) -> None:
    trainer = Trainer(trainable, pairs, replace(RECIPE, initial_words="the lazy fox"))
    before = trainer.parameters.result()["decoder"]
    left = trainer.initialise()
    assert left is not None
    assert not torch.equal(trainer.parameters.result()["decoder"].keys, before.keys)
    assert Trainer(trainable, pairs, RECIPE).initialise() is None


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"length": 0}, "length"),
        ({"lr": float("nan")}, "lr"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"keep": "first"}, "keep"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_a_recipe_out_of_bounds_is_refused(changes: dict[str, object], word: str) -> None:
    with pytest.raises(InvalidRequest, match=word):
        replace(RECIPE, **changes).check()  # type: ignore[arg-type]


def test_the_rate_rises_and_falls_linearly() -> None:
    recipe = Recipe(lr=1.0, warmup_steps=4)
    rates = [recipe.lr_at(step, 12) for step in range(13)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.5)
    assert rates[12] == 0.0
    assert Recipe(lr=1.0).lr_at(0, 10) == 1.0
