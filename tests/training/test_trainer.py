"""The trainer changes the prefix alone, learns, and resumes bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.errors import InsufficientStorage, InvalidRequest
from app.evaluation.text_pairs import TokenPair
from app.model.dense import dense_logits
from app.model.frozen import FrozenModel
from app.model.sequences.packed_tokens import packed_logits
from app.prefix.prefix import KeyValues
from app.training.batches import IGNORED, collate
from app.training.checkpoint import load_checkpoint, save_checkpoint
from app.training.objective import Loss, loss_of
from app.training.progress import Report, TrainingProgress
from app.training.recipe import Recipe
from app.training.trainer import Trainer

RECIPE = Recipe(length=3, hidden=32, batch_size=2, max_steps=12, lr=1e-2, validate_every=4)


def quiet(_: Report) -> None:
    """No progress."""


def test_gradient_reaches_every_parameter_and_no_weight_of_the_model(
    trainable: FrozenModel, pairs: list[TokenPair]
) -> None:
    trainer = Trainer(trainable, pairs, RECIPE)
    trainer.loss_on(pairs).mean.backward()
    for name, parameter in trainer.parameters.items():
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


def test_the_loss_of_a_batch_is_the_mean_of_its_rows_losses(
    trainable: FrozenModel, pairs: list[TokenPair]
) -> None:
    """Padding changes nothing, positions start after the prefix, sums are per sentence."""
    trainer = Trainer(trainable, pairs, RECIPE)
    prefix = trainer.present()["decoder"]
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
    batch = collate(pairs[:1], position_offset=8)
    logits = packed_logits(trainable, batch.tokens, trainer.result(), batch.keep)[0]
    chosen = batch.labels != IGNORED
    assert torch.equal(logits.argmax(-1)[chosen], batch.labels[chosen])


def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_run(
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
        (second.present()["decoder"], whole.present()["decoder"]),
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
        seen.append((report.validation_loss, trainer.present()["decoder"]))

    trainer.run(remember)
    lowest, state = min(seen, key=lambda entry: entry[0])
    assert trainer.best_loss == lowest
    assert torch.equal(trainer.result()["decoder"].keys, state.keys)
    last = Trainer(trainable, pairs, replace(wild, keep="last"), validation=pairs)
    last.run(quiet)
    assert torch.equal(last.result()["decoder"].keys, seen[-1][1].keys)


def test_as_many_held_out_pairs_select_the_state_as_the_recipe_says(
    trainable: FrozenModel, pairs: list[TokenPair]
) -> None:
    def validated(count: int) -> float:
        recipe = replace(RECIPE, max_steps=1, validation_pairs=count)
        trainer = Trainer(trainable, pairs, recipe, validation=pairs)
        trainer.run(quiet)
        assert trainer.best_loss is not None
        return trainer.best_loss

    def loss(of: list[TokenPair]) -> float:
        trainer = Trainer(trainable, pairs, replace(RECIPE, max_steps=1))
        trainer.run(quiet)
        with torch.no_grad():
            return trainer.loss_on(of).mean.item()

    assert validated(0) == validated(len(pairs)) == pytest.approx(loss(pairs), rel=1e-5)
    assert validated(1) in [pytest.approx(loss([pair]), rel=1e-5) for pair in pairs]


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


@pytest.mark.parametrize("what", ["loss", "gradient", "validation loss"])
def test_a_value_that_is_not_finite_ends_the_run_and_keeps_the_last_good_state(
    what: str,
    trainable: FrozenModel,
    pairs: list[TokenPair],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = tmp_path / "run.checkpoint"

    def new() -> Trainer:
        return Trainer(
            trainable, pairs, RECIPE, validation=pairs[:2], checkpoint=place, checkpoint_every=4
        )

    spoiled = new()
    spoiled.run(quiet, until=6)
    spoil(what, spoiled, monkeypatch)
    before = {name: tensor.clone() for name, tensor in spoiled.parameters.items()}
    good = place.read_bytes()
    with pytest.raises(InvalidRequest, match=rf"the {what} became (nan|inf) at step [678]") as said:
        spoiled.run(quiet)
    assert "run.checkpoint has the last good state" in str(said.value)
    assert place.read_bytes() == good
    after = spoiled.parameters
    if what != "validation loss":
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in after.values())

    monkeypatch.undo()
    resumed, whole = new(), Trainer(trainable, pairs, RECIPE, validation=pairs[:2])
    assert resumed.resume()
    resumed.run(quiet)
    whole.run(quiet)
    assert torch.equal(resumed.result()["decoder"].keys, whole.result()["decoder"].keys)


def spoil(what: str, trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    """Make the trainer's next loss, gradient or validation loss something that is no number."""
    if what == "loss":
        loss_on = trainer.loss_on

        def nan_loss(pairs: list[TokenPair], *, in_step: bool) -> Loss:
            loss = loss_on(pairs, in_step=in_step)
            return Loss(loss.mean * float("nan"), loss.count)

        patch.setattr(trainer, "loss_on", nan_loss)
    elif what == "gradient":
        first = next(iter(trainer.parameters.values()))
        handle = first.register_hook(lambda gradient: gradient * float("inf"))
        patch.setattr(trainer, "_hook", handle, raising=False)
    else:
        patch.setattr(trainer, "_loss_over", lambda *_: float("nan"))


def test_a_prefix_that_overflows_is_never_written(
    trainable: FrozenModel, pairs: list[TokenPair], tmp_path: Path
) -> None:
    place = tmp_path / "run.checkpoint"
    trainer = Trainer(trainable, pairs, RECIPE, checkpoint=place)
    trainer.run(quiet, until=2)
    good = place.read_bytes()
    with torch.no_grad():
        next(iter(trainer.parameters.values())).fill_(float("inf"))
    with pytest.raises(InvalidRequest, match="the prefix became nan at step 2"):
        trainer.save()
    assert place.read_bytes() == good


def test_resume_refuses_a_checkpoint_with_values_that_are_not_finite(
    trainable: FrozenModel, pairs: list[TokenPair], tmp_path: Path
) -> None:
    place = tmp_path / "run.checkpoint"
    Trainer(trainable, pairs, RECIPE, checkpoint=place).run(quiet, until=1)
    saved = load_checkpoint(place)
    tensors = {name: tensor.clone() for name, tensor in saved.tensors.items()}
    next(iter(tensors.values())).fill_(float("nan"))
    save_checkpoint(place, tensors, saved.state)
    with pytest.raises(InvalidRequest, match="not finite"):
        Trainer(trainable, pairs, RECIPE, checkpoint=place).resume()


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    place = tmp_path / "run.checkpoint"
    save_checkpoint(place, {"a": torch.zeros(2)}, {})
    good = place.read_bytes()
    (tmp_path / "run.checkpoint.tmp").mkdir()
    with pytest.raises(InsufficientStorage, match=r"run\.checkpoint"):
        save_checkpoint(place, {"a": torch.ones(2)}, {})
    assert place.read_bytes() == good


def test_progress_compares_with_the_untrained_prefix_and_the_base_model(
    trainable: FrozenModel, pairs: list[TokenPair]
) -> None:
    trainer = Trainer(trainable, pairs, replace(RECIPE, max_steps=40, batch_size=4))
    with pytest.raises(InvalidRequest):
        trainer.progress()
    first = trainer.loss_on(pairs).mean.item()
    trainer.run(quiet)
    progress = trainer.progress()
    assert progress.first == pytest.approx(first, rel=1e-4)
    assert progress.last == pytest.approx(trainer.loss_on(pairs).mean.item(), rel=1e-4)
    assert progress.base == pytest.approx(loss_of(trainable, {}, pairs).mean.item(), rel=1e-4)
    assert progress.fault is None


@pytest.mark.parametrize(
    ("losses", "word"),
    [((50.0, 40.0, 39.5), "did not fall"), ((30.0, 90.0, 31.0), "base model alone")],
)
def test_progress_reports_a_failed_run(losses: tuple[float, float, float], word: str) -> None:
    assert word in (TrainingProgress(*losses, 3).fault or "")
    assert "did not fall" in (TrainingProgress(1.0, 1.0, float("nan"), 3).fault or "")


def test_rate_and_batch_are_chosen_by_the_size_of_the_model() -> None:
    def chosen(parameters: float, pairs: int, **given: object) -> tuple[object, ...]:
        recipe = Recipe(**given).for_model(("decoder",), int(parameters), pairs)  # type: ignore[arg-type]
        return recipe.lr, recipe.batch_size, recipe.warmup_steps, recipe.total_steps(pairs)

    assert chosen(6.4e6, 160) == (3e-3, 8, 30, 200)
    assert chosen(6.4e6, 10) == (3e-3, 8, 30, 200)
    assert chosen(6.4e6, 100_000) == (3e-3, 8, 30, 400)
    assert chosen(124e6, 1000) == (1e-3, 8, 30, 1250)
    assert chosen(355e6, 1000) == (5e-5, 5, 0, 2000)
    assert chosen(6.4e6, 80, epochs=2) == (3e-3, 8, 30, 20)
    assert chosen(355e6, 80, lr=1.0, batch_size=4, warmup_steps=7, max_steps=9) == (1.0, 4, 7, 9)


def test_initial_words_lower_the_distance_to_them(
    trainable: FrozenModel, pairs: list[TokenPair]
) -> None:
    trainer = Trainer(trainable, pairs, replace(RECIPE, initial_words="the lazy fox"))
    before = trainer.present()["decoder"]
    left = trainer.initialise()
    assert left is not None
    assert not torch.equal(trainer.present()["decoder"].keys, before.keys)
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


@pytest.mark.parametrize("method", ["prefix", "embedding"])
def test_a_start_from_words_can_pause(
    method: str, trainable: FrozenModel, pairs: list[TokenPair]
) -> None:
    pauses: list[None] = []
    recipe = replace(RECIPE, method=method, initial_words="the lazy fox")
    trainer = Trainer(trainable, pairs, recipe, between=lambda: pauses.append(None))
    trainer.initialise()
    assert len(pauses) >= 10
