"""BART learns as the authors had it learn: three modules, its own dropout on, mean loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import BartForConditionalGeneration

from app.errors import InvalidRequest
from app.evaluation.text_pairs import TokenPair, default_template, source_pairs
from app.model.dense import dense_pair_logits
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.prefix import KeyValues
from app.training.batches import collate_sources
from app.training.objective import position_offset
from app.training.progress import Report
from app.training.recipe import Recipe
from app.training.trainer import Trainer
from tests.tiny import bart_config, save_model
from tests.training.conftest import EXAMPLES

RECIPE = Recipe(length=3, hidden=32, batch_size=2, max_steps=8, lr=1e-2, validate_every=4)
MODULES = ("decoder", "encoder", "cross")


@pytest.fixture(scope="module")
def pairs(bart: FrozenModel) -> list[TokenPair]:
    template = default_template(bart.text, has_encoder=True)
    room = bart.spec.context_limit
    return source_pairs(
        EXAMPLES,
        bart.text,
        template,
        source_room=room,
        target_room=room,
        first=None,
        source="examples",
    )


def quiet(_: Report) -> None:
    """No progress."""


def equal(mine: KeyValues, theirs: KeyValues) -> bool:
    return torch.equal(mine.keys, theirs.keys) and torch.equal(mine.values, theirs.values)


def test_for_model_gives_bart_the_recipe_of_the_authors(bart: FrozenModel) -> None:
    recipe = Recipe().for_modules(bart.spec.modules)
    assert recipe.modules == MODULES
    assert recipe.hidden == 800
    assert recipe.model_dropout is True
    plain = Recipe().for_modules(["decoder"])
    assert (plain.modules, plain.hidden, plain.model_dropout) == (("decoder",), 512, False)
    asked = Recipe(modules=("cross", "decoder"), hidden=16, model_dropout=False)
    assert asked.for_modules(bart.spec.modules) == replace(asked, modules=("decoder", "cross"))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"modules": ("decoder", "memory")}, "has no 'memory'"),
        ({"modules": ("encoder",)}, "every prefix needs the module decoder"),
        ({"method": "infix"}, "infix is not defined for a model with an encoder"),
        ({"method": "embedding"}, "embedding is not defined for a model with an encoder"),
    ],
)
def test_for_model_refuses_settings_that_bart_does_not_have(
    bart: FrozenModel, pairs: list[TokenPair], changes: dict[str, object], word: str
) -> None:
    with pytest.raises(InvalidRequest, match=word):
        Trainer(bart, pairs, replace(RECIPE, **changes))  # type: ignore[arg-type]


def test_for_model_refuses_encoder_settings_without_an_encoder(trainable: FrozenModel) -> None:
    for recipe in (Recipe(max_source=9), Recipe(modules=("decoder", "cross"))):
        with pytest.raises(InvalidRequest):
            recipe.for_modules(trainable.spec.modules)


def test_sources_and_targets_are_framed_as_the_tokenizer_frames_them(
    bart: FrozenModel, pairs: list[TokenPair]
) -> None:
    assert default_template(bart.text, has_encoder=True) == "<s>{input}</s>"
    assert list(pairs[0].prompt_ids) == bart.text.encode(EXAMPLES[0].input)
    assert list(pairs[0].target_ids) == bart.text.encode(EXAMPLES[0].targets[0])
    assert (pairs[0].target_ids[0], pairs[0].target_ids[-1]) == (0, 2)


def test_a_forced_first_token_is_learned_and_long_texts_are_cut_or_named(
    bart: FrozenModel,
) -> None:
    def made(first: int | None, target_room: int) -> TokenPair:
        return source_pairs(
            EXAMPLES[:1],
            bart.text,
            "{input}</s>",
            source_room=6,
            target_room=target_room,
            first=first,
            source="d.jsonl",
        )[0]

    assert made(0, 50).target_ids == made(None, 50).target_ids
    assert made(7, 50).target_ids[:2] == (7, 0)
    whole = bart.text.render("{input}</s>", EXAMPLES[0].input)
    assert made(0, 50).prompt_ids == (*whole[:5], 2)
    assert bart.text.cut_source(whole, None) == tuple(whole)
    with pytest.raises(InvalidRequest, match=r"d\.jsonl:1: .* room for 4"):
        made(None, 4)


def test_special_tokens_in_the_data_stay_text(bart: FrozenModel) -> None:
    template = default_template(bart.text, has_encoder=True)
    text = "a </s> b <s> c <mask>"
    assert bart.text.render(template, text) == bart.text.encode(text)
    assert bart.text.encode(text).count(2) == 1


def test_the_decoder_reads_the_labels_one_late() -> None:
    batch = collate_sources([TokenPair((5,), (0, 2)), TokenPair((5, 6, 7), (0, 8, 2))], start=2)
    assert batch.sources is not None
    assert batch.sources.lengths == (1, 3)
    assert batch.sources.ids.tolist() == [[5, 5, 6, 7]]
    assert batch.sources.positions.tolist() == [[0, 0, 1, 2]]
    assert batch.tokens.lengths == (2, 3)
    assert batch.tokens.ids.tolist() == [[2, 0, 2, 0, 8]]
    assert batch.keep.tolist() == [0, 1, 2, 3, 4]
    assert batch.labels.tolist() == [0, 2, 0, 8, 2]


def test_loss_is_the_mean_over_tokens_whatever_the_padding(
    bart: FrozenModel, pairs: list[TokenPair]
) -> None:
    trainer = Trainer(bart, pairs, RECIPE)
    prefix = trainer.present()
    total, count = 0.0, 0
    for pair in pairs:
        source = torch.tensor([pair.prompt_ids])
        given = torch.tensor([(2, *pair.target_ids[:-1])])
        mask = torch.ones_like(source, dtype=torch.bool)
        logits = dense_pair_logits(bart, source, mask, given, prefix)[0]
        total += cross_entropy(logits, torch.tensor(pair.target_ids), reduction="sum").item()
        count += len(pair.target_ids)
    loss = trainer.loss_on(pairs)
    assert loss.mean.item() == pytest.approx(total / count, rel=1e-4)
    assert loss.count == count


def test_gradient_reaches_every_parameter_of_every_module_and_no_weight_of_the_model(
    bart: FrozenModel, pairs: list[TokenPair]
) -> None:
    trainer = Trainer(bart, pairs, RECIPE)
    trainer.loss_on(pairs).mean.backward()
    named = dict(trainer.parameters.items())
    assert {name.partition(".")[0] for name in named} == set(MODULES)
    for name, parameter in named.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in bart.hf.parameters())


def test_each_module_has_its_own_network_of_its_own_shape(
    bart: FrozenModel, pairs: list[TokenPair]
) -> None:
    trainer = Trainer(bart, pairs, RECIPE)
    result = trainer.result()
    assert tuple(result) == MODULES
    for name, made in result.items():
        shape = bart.spec.modules[name]
        assert made.keys.shape == (shape.layers, shape.kv_heads, 3, shape.head_dim)
        assert trainer.parameters[f"{name}.embedding.weight"].shape == (3, 32)
    assert position_offset(bart, 3) == 0
    alone = Trainer(bart, pairs, replace(RECIPE, modules=("decoder",)))
    assert tuple(alone.result()) == ("decoder",)


def test_training_lowers_the_loss_and_leaves_the_model_as_it_was(
    bart: FrozenModel, pairs: list[TokenPair]
) -> None:
    before = {name: tensor.clone() for name, tensor in bart.hf.state_dict().items()}
    recipe = replace(RECIPE, batch_size=4, max_steps=120, lr=2e-2, model_dropout=False)
    losses: list[float] = []
    Trainer(bart, pairs, recipe).run(lambda report: losses.append(report.loss))
    assert losses[-1] < 0.5 * losses[0]
    assert not bart.hf.training
    assert all(torch.equal(before[k], v) for k, v in bart.hf.state_dict().items())


def test_dropout_is_on_only_during_steps(
    bart: FrozenModel, pairs: list[TokenPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps differ with dropout and without; validation and what follows never drop."""
    with_dropout, without = (
        Trainer(bart, pairs, replace(RECIPE, model_dropout=on), validation=pairs)
        for on in (True, False)
    )
    modes: list[bool] = []
    plain = Trainer.loss_on

    def watched(self: Trainer, rows: list[TokenPair], *, in_step: bool = False) -> object:
        modes.append(bart.hf.training)
        return plain(self, rows, in_step=in_step)

    monkeypatch.setattr(Trainer, "loss_on", watched)
    losses: list[list[float]] = [[], []]
    with_dropout.run(lambda report: losses[0].append(report.loss), until=4)
    assert modes == [True] * 4 + [False]
    assert not bart.hf.training
    modes.clear()
    without.run(lambda report: losses[1].append(report.loss), until=4)
    assert modes == [False] * 5
    assert losses[0] != losses[1]


def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_run(
    bart: FrozenModel, pairs: list[TokenPair], tmp_path: Path
) -> None:
    whole = Trainer(bart, pairs, RECIPE, validation=pairs[:2])
    whole.run(quiet)
    place = tmp_path / "run.checkpoint"
    Trainer(bart, pairs, RECIPE, validation=pairs[:2], checkpoint=place).run(quiet, until=5)
    torch.manual_seed(99)
    second = Trainer(bart, pairs, RECIPE, validation=pairs[:2], checkpoint=place)
    assert second.resume()
    second.run(quiet)
    for module in MODULES:
        assert equal(second.present()[module], whole.present()[module])
        assert equal(second.result()[module], whole.result()[module])
    other = replace(RECIPE, modules=("decoder", "cross"))
    with pytest.raises(InvalidRequest, match="another run"):
        Trainer(bart, pairs, other, validation=pairs[:2], checkpoint=place).resume()


def test_attention_weights_are_dropped_while_the_model_trains_and_at_no_other_time(
    tmp_path: Path,
) -> None:
    config = bart_config(dropout=0.0, attention_dropout=0.5)
    folder = save_model(tmp_path / "bart", config, BartForConditionalGeneration)
    model = load_model(str(folder), device="cpu", dtype="float32", packed=False)
    source, target = torch.arange(5, 25)[None], torch.arange(40, 50)[None]
    everything = torch.ones_like(source, dtype=torch.bool)

    def logits() -> torch.Tensor:
        return dense_pair_logits(model, source, everything, target, {}).detach()

    assert torch.equal(logits(), logits())
    model.hf.train()
    assert not torch.allclose(logits(), logits(), atol=1e-3)
