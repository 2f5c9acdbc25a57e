"""Each option of a recipe changes a step as it says, and changes nothing else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from app.errors import InvalidRequest
from app.evaluation.text_pairs import TokenPair, default_template, source_pairs
from app.model.dense import dense_logits, dense_pair_logits
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.prefix import KeyValues
from app.training.methods.adapter import transformer_layers
from app.training.methods.names import METHODS
from app.training.progress import Report
from app.training.recipe import Recipe
from app.training.trainer import Trainer
from tests.training.conftest import EXAMPLES

RECIPE = Recipe(
    length=3, hidden=32, batch_size=4, max_steps=4, lr=1e-2, warmup_steps=0, model_dropout=False
)


@pytest.fixture(scope="module")
def sources(bart: FrozenModel) -> list[TokenPair]:
    """The four pairs of `EXAMPLES` for a model with an encoder."""
    template = default_template(bart.text, has_encoder=True)
    rooms = {"source_room": 100, "target_room": 100}
    return source_pairs(EXAMPLES, bart.text, template, first=None, source="examples", **rooms)


def one_step(trainer: Trainer) -> tuple[Report, dict[str, torch.Tensor]]:
    """What the first step reports, and the gradients by which it changed the parameters."""
    report = trainer.take_step()
    gradients = {}
    for name, parameter in trainer.parameters.items():
        assert parameter.grad is not None, name
        gradients[name] = parameter.grad.clone()
    return report, gradients


def norm(gradients: Mapping[str, torch.Tensor]) -> float:
    """The length of all gradients together."""
    return math.sqrt(sum(float(each.double().square().sum()) for each in gradients.values()))


@torch.no_grad()
def pair_logits(
    model: FrozenModel, modules: Mapping[str, KeyValues], pair: TokenPair
) -> torch.Tensor:
    """The logits [targets, vocabulary] of one pair alone, in a rectangle of one row."""
    before = pair.target_ids[:-1]
    if model.encoder_decoder is None:
        ids, prefix = torch.tensor([[*pair.prompt_ids, *before]]), modules.get("decoder")
        logits = dense_logits(
            model, ids, prefix, position_offset=0 if prefix is None else prefix.length
        )
    else:
        source = torch.tensor([pair.prompt_ids])
        given = torch.tensor([[model.generation.frame.start, *before]])
        mask = torch.ones_like(source, dtype=torch.bool)
        logits = dense_pair_logits(model, source, mask, given, modules)
    return logits[0, -len(pair.target_ids) :]


def surprising(model: FrozenModel, pairs: Sequence[TokenPair]) -> list[TokenPair]:
    """The pairs' prompts with targets that the model thinks unlikely: smoothing lowers their loss.

    To a random model usual targets are as likely as any, so that smoothing changes nothing.
    """
    found = []
    for number, pair in enumerate(pairs):
        target: tuple[int, ...] = ()
        for _ in range(2 + number):
            logits = pair_logits(model, {}, replace(pair, target_ids=(*target, 0)))
            target = (*target, int(logits[-1].argmin()))
        found.append(replace(pair, target_ids=target))
    return found


def torch_loss(
    model: FrozenModel,
    modules: Mapping[str, KeyValues],
    pairs: Sequence[TokenPair],
    label_smoothing: float,
) -> float:
    """The authors' loss by torch's cross entropy: of a sentence, with an encoder of a token."""
    total = sum(
        cross_entropy(
            pair_logits(model, modules, pair),
            torch.tensor(pair.target_ids),
            reduction="sum",
            label_smoothing=label_smoothing,
        ).item()
        for pair in pairs
    )
    by_token = model.encoder_decoder is not None
    return total / (sum(len(pair.target_ids) for pair in pairs) if by_token else len(pairs))


@pytest.mark.parametrize("family", ["gpt2", "bart"])
def test_a_step_smooths_labels_as_torch_does_and_validation_does_not(
    family: str, request: pytest.FixtureRequest
) -> None:
    names = ("trainable", "pairs") if family == "gpt2" else ("bart", "sources")
    model, rows = (request.getfixturevalue(name) for name in names)
    rows = surprising(model, rows)
    recipe = replace(RECIPE, label_smoothing=0.3, validate_every=1)
    trainer = Trainer(model, rows, recipe, validation=rows)
    expected, plain = (torch_loss(model, trainer.present(), rows, share) for share in (0.3, 0.0))
    assert expected < 0.95 * plain
    report, _ = one_step(trainer)
    assert report.loss == pytest.approx(expected, rel=1e-4)
    after = torch_loss(model, trainer.present(), rows, 0.0)
    assert report.validation_loss == pytest.approx(after, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_smooths_labels_in_steps_alone(
    method: str, tiny_gpt2_folder: Path, pairs: list[TokenPair]
) -> None:
    """The smoothed loss is a straight line in the share, so three shares give two equal falls."""
    step, validation = [], []
    for share in (0.0, 0.2, 0.4):
        model = load_model(str(tiny_gpt2_folder), device="cpu", dtype="float32", packed=False)
        recipe = replace(RECIPE, method=method, label_smoothing=share)
        rows = surprising(model, pairs)
        trainer = Trainer(model, rows, recipe)
        with torch.no_grad():
            step.append(trainer.loss_on(rows, in_step=True).mean.item())
            validation.append(trainer.loss_on(rows).mean.item())
    assert step[0] == validation[0] == validation[1] == validation[2]
    fall = step[0] - step[1]
    assert fall > 0.03 * step[0]
    assert step[1] - step[2] == pytest.approx(fall, rel=1e-3)


def test_a_step_drops_the_stated_share_of_the_prefix_and_validation_none(
    trainable: FrozenModel, pairs: list[TokenPair]
) -> None:
    recipe = replace(RECIPE, length=20, prefix_dropout=0.3, validate_every=1)
    dropped = Trainer(trainable, pairs, recipe, validation=pairs)
    kept = Trainer(trainable, pairs, replace(recipe, prefix_dropout=0.0), validation=pairs)
    whole, seen = dropped.present()["decoder"], dropped.rows(pairs).prefix["decoder"]
    for own, part in ((whole.keys, seen.keys), (whole.values, seen.values)):
        share = float((part == 0).float().mean())
        assert share == pytest.approx(0.3, abs=0.05)
        torch.testing.assert_close(part[part != 0], own[part != 0] / 0.7)
    first = dropped.loss_on(pairs).mean.item()
    assert first == kept.loss_on(pairs).mean.item()
    report, _ = one_step(dropped)
    assert one_step(kept)[0].loss == pytest.approx(first, rel=1e-5)
    assert abs(report.loss - first) > 1e-3 * first
    after = dropped.loss_on(pairs).mean.item()
    assert report.validation_loss == pytest.approx(after, rel=1e-5)


def test_each_step_drops_other_values_of_an_infix_and_of_a_prefix(
    tiny_gpt2_folder: Path, pairs: list[TokenPair]
) -> None:
    """At a rate near nothing only the noise can tell one step's loss from another's."""
    for method in ("prefix", "prefix-direct", "embedding", "infix"):
        model = load_model(str(tiny_gpt2_folder), device="cpu", dtype="float32", packed=False)
        recipe = replace(RECIPE, method=method, prefix_dropout=0.3, lr=1e-9)
        reports: list[Report] = []
        Trainer(model, pairs, recipe).run(reports.append)
        losses = [report.loss for report in reports]
        assert max(losses) - min(losses) > 1e-3 * max(losses), method


def test_gradients_longer_than_clip_norm_are_cut_to_it_and_others_are_left(
    trainable: FrozenModel, pairs: list[TokenPair]
) -> None:
    def gradients(clip_norm: float) -> dict[str, torch.Tensor]:
        return one_step(Trainer(trainable, pairs, replace(RECIPE, clip_norm=clip_norm)))[1]

    free = gradients(1e9)
    length = norm(free)
    assert length > 1.0
    cut = gradients(length / 50)
    assert norm(cut) == pytest.approx(length / 50, rel=1e-3)
    for name, gradient in free.items():
        torch.testing.assert_close(cut[name] * 50, gradient, rtol=1e-3, atol=1e-6)
    assert all(torch.equal(gradients(2 * length)[name], free[name]) for name in free)


def test_the_network_of_depth_two_has_one_more_layer_of_tanh(
    trainable: FrozenModel, pairs: list[TokenPair]
) -> None:
    trainer = Trainer(trainable, pairs, replace(RECIPE, depth=2))
    named = {name.removeprefix("decoder."): p for name, p in trainer.parameters.items()}
    shapes = {name: tuple(value.shape) for name, value in named.items()}
    assert shapes == {
        "embedding.weight": (3, 32),
        "network.0.weight": (32, 32),
        "network.0.bias": (32,),
        "network.2.weight": (32, 32),
        "network.2.bias": (32,),
        "network.4.weight": (2 * 2 * 32, 32),
        "network.4.bias": (2 * 2 * 32,),
    }
    made = named["embedding.weight"]
    for layer in (0, 2, 4):
        made = made @ named[f"network.{layer}.weight"].T + named[f"network.{layer}.bias"]
        made = made if layer == 4 else torch.tanh(made)
    slices = made.view(3, 4, 4, 8).permute(1, 2, 0, 3)  # [2 * layers, heads, length, head_dim]
    prefix = trainer.present()["decoder"]
    torch.testing.assert_close(prefix.keys, slices[0::2])
    torch.testing.assert_close(prefix.values, slices[1::2])
    one_step(trainer)
    assert not torch.equal(trainer.present()["decoder"].keys, prefix.keys)


@pytest.mark.parametrize("family", ["gpt2", "bart"])
def test_checkpointed_layers_are_computed_again_and_give_equal_gradients(
    family: str, request: pytest.FixtureRequest
) -> None:
    """BART's layers drop activations meanwhile: the second time they drop the same ones."""
    names = ("trainable", "pairs") if family == "gpt2" else ("bart", "sources")
    model, rows = (request.getfixturevalue(name) for name in names)
    first_norm = "ln_1" if family == "gpt2" else "self_attn_layer_norm"
    found: dict[bool, tuple[Report, dict[str, torch.Tensor]]] = {}
    runs: dict[bool, Counter[int]] = {}
    for checkpointed in (False, True):
        recipe = replace(
            RECIPE, gradient_checkpointing=checkpointed, model_dropout=family == "bart"
        )
        trainer = Trainer(model, rows, recipe)
        counts = runs[checkpointed] = Counter[int]()
        trainer.begin_step()  # measures the losses that progress compares with
        handles = [
            layer.get_submodule(first_norm).register_forward_hook(
                lambda *_, number=number, counts=counts: counts.update([number])
            )
            for number, layer in enumerate(transformer_layers(model))
        ]
        found[checkpointed] = one_step(trainer)
        for handle in handles:
            handle.remove()
    layers = range(len(transformer_layers(model)))
    assert runs[False] == dict.fromkeys(layers, 1)
    assert runs[True] == dict.fromkeys(layers, 2)
    assert found[True][0].loss == found[False][0].loss
    for name, gradient in found[False][1].items():
        assert torch.equal(found[True][1][name], gradient), name


def test_batches_that_accumulate_are_computed_one_by_one_and_make_one_step(
    bart: FrozenModel, sources: list[TokenPair]
) -> None:
    """The mean is over all tokens of the step, whatever part they are in."""
    assert len({len(pair.target_ids) for pair in sources}) > 1
    passes: Counter[int] = Counter()
    found = []
    for size, parts in ((4, 1), (1, 4)):
        trainer = Trainer(bart, sources, replace(RECIPE, batch_size=size, accumulate=parts))
        trainer.begin_step()
        handle = (
            bart.hf.get_encoder()
            .layers[0]
            .register_forward_hook(lambda *_, size=size: passes.update([size]))
        )
        found.append(one_step(trainer))
        handle.remove()
        assert trainer.step == 1
    assert passes == {4: 1, 1: 4}
    (whole, expected), (parted, gradients) = found
    assert parted.loss == pytest.approx(whole.loss, rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)
    epochs = replace(RECIPE, max_steps=0, epochs=3, batch_size=1, accumulate=2)
    assert Trainer(bart, sources, epochs).total == 6


def test_the_first_steps_move_parameters_by_the_rate_of_the_warm_up(
    trainable: FrozenModel, pairs: list[TokenPair]
) -> None:
    """Adam's first step moves each parameter by the rate, whatever the gradient."""
    moved = {}
    for warmup in (0, 5):
        recipe = replace(RECIPE, method="prefix-direct", max_steps=10, warmup_steps=warmup)
        trainer = Trainer(trainable, pairs, recipe)
        before = {name: value.detach().clone() for name, value in trainer.parameters.items()}
        report, _ = one_step(trainer)
        moved[warmup] = max(
            float((value.detach() - before[name]).abs().max())
            for name, value in trainer.parameters.items()
        )
        assert moved[warmup] == pytest.approx(report.lr, rel=1e-3)
    assert moved[0] == pytest.approx(1e-2, rel=1e-3)
    assert moved[5] == pytest.approx(1e-2 / 5, rel=1e-3)


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("embedding", {"depth": 2}),
        ("lora", {"prefix_dropout": 0.1}),
        ("finetune", {"lora_rank": 4}),
        ("prefix", {"adapter_share": 0.1}),
    ],
)
def test_a_setting_that_a_method_does_not_use_is_refused(
    method: str, given: dict[str, float]
) -> None:
    (name,) = given
    with pytest.raises(InvalidRequest, match=f"{name}: the method {method} does not use it"):
        Recipe(method=method, **given).check()  # type: ignore[arg-type]
