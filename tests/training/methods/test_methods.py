"""Every method learns, leaves frozen weights alone, resumes, and answers the same from its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from app.errors import InvalidRequest
from app.evaluation.text_pairs import TokenPair, default_template, source_pairs
from app.model.dense import dense_logits
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.foreign import looks_like_file
from app.prefix.prefix import KeyValues
from app.training.methods.adapter import adapter_size
from app.training.methods.embedding import keys_values_of_embeddings
from app.training.methods.files import TrainedFile, is_trained_file, read_trained, write_trained
from app.training.methods.infix import infix_loss, keys_values_with_infix
from app.training.methods.names import (
    DECODER_ONLY,
    FROZEN_METHODS,
    METHODS,
    PREFIX_METHODS,
    WEIGHT_METHODS,
)
from app.training.methods.padded import padded_loss
from app.training.methods.tuned import load_tuned_model
from app.training.progress import Report
from app.training.recipe import Recipe
from app.training.trainer import Trainer
from tests.training.conftest import EXAMPLES, TEMPLATE

RECIPE = Recipe(length=3, hidden=32, batch_size=4, max_steps=25, lr=1e-2, model_dropout=False)


def load(folder: Path) -> FrozenModel:
    return load_model(str(folder), device="cpu", dtype="float32", packed=False)


def quiet(_: Report) -> None:
    """No progress."""


def bart_pairs(model: FrozenModel) -> list[TokenPair]:
    template = default_template(model.text, has_encoder=True)
    rooms = {"source_room": 100, "target_room": 100}
    return source_pairs(EXAMPLES, model.text, template, first=None, source="examples", **rooms)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "bart"])
def test_a_method_lowers_the_loss_and_leaves_frozen_weights_alone(
    method: str,
    family: str,
    model_folders: dict[str, Path],
    tiny_bart_folder: Path,
    pairs: list[TokenPair],
) -> None:
    if family == "bart" and method in DECODER_ONLY:
        return
    model = load(tiny_bart_folder if family == "bart" else model_folders[family])
    before = {name: value.clone() for name, value in model.hf.named_parameters()}
    rows = bart_pairs(model) if family == "bart" else pairs
    lr = 5e-2 if method in ("prefix-direct", "peft") else 1e-2
    sized = {"adapter_share": 0.1} if method == "adapter" else {}
    trainer = Trainer(model, rows, replace(RECIPE, method=method, lr=lr, **sized))
    first = trainer.loss_on(rows).mean.item()
    trainer.run(quiet)
    assert trainer.loss_on(rows).mean.item() < 0.97 * first
    after = {name.replace(".base_layer", ""): p for name, p in model.hf.named_parameters()}
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    trained = set(trainer.parameters) if method in ("finetune", "finetune-top2") else set()
    assert changed <= trained
    assert bool(changed) == bool(trained)


@pytest.mark.parametrize("method", ["prefix-direct", "infix", "finetune-top2", "lora", "adapter"])
def test_a_resumed_run_ends_like_an_uninterrupted_run(
    method: str, tiny_gpt2_folder: Path, pairs: list[TokenPair], tmp_path: Path
) -> None:
    place = tmp_path / "run.checkpoint"
    recipe = replace(RECIPE, method=method, max_steps=6, batch_size=2, model_dropout=True)
    if method in FROZEN_METHODS:
        recipe = replace(recipe, prefix_dropout=0.1)

    def new(checkpoint: Path | None) -> Trainer:
        return Trainer(
            load(tiny_gpt2_folder), pairs, recipe, validation=pairs, checkpoint=checkpoint
        )

    whole = new(None)
    whole.run(quiet)
    new(place).run(quiet, until=3)
    second = new(place)
    assert second.resume()
    second.run(quiet)
    for name, value in whole.parameters.items():
        assert torch.equal(value, second.parameters[name]), name
    assert all(torch.equal(value, second.state()[name]) for name, value in whole.state().items())


@pytest.mark.parametrize("method", ["infix", *WEIGHT_METHODS])
def test_a_file_gives_the_model_that_was_trained(
    method: str, tiny_gpt2_folder: Path, pairs: list[TokenPair], tmp_path: Path
) -> None:
    model = load(tiny_gpt2_folder)
    trainer = Trainer(model, pairs, replace(RECIPE, method=method, max_steps=8))
    trainer.run(quiet)
    file = TrainedFile(
        method,
        trainer.state(),
        base_fingerprint=model.spec.fingerprint,
        base_model="tiny",
        input_template=TEMPLATE,
        decoding={"max_tokens": 5},
        recipe=trainer.recipe.as_dict(),
        provenance={},
    )
    path = tmp_path / "tuned.safetensors"
    write_trained(file, path)
    assert is_trained_file(path)
    assert "cannot share a batch" in (looks_like_file(path) or "")
    tuned = load_tuned_model(path, str(tiny_gpt2_folder), device="cpu")
    loss = trainer.loss_on(pairs).mean.item()
    if method == "infix":
        read = read_trained(path).state
        added = KeyValues(read["infix.keys"], read["infix.values"])
        again = infix_loss(tuned.model, read["infix.tokens"], added, pairs)
        assert again.mean.item() == pytest.approx(loss, rel=1e-6)
    else:
        assert padded_loss(tuned.model, pairs).mean.item() == loss
    assert len(tuned.texts(["name : fox"])) == 1
    write_trained(replace(file, base_fingerprint="0" * 64), path)
    with pytest.raises(InvalidRequest, match="not on this base model"):
        load_tuned_model(path, str(tiny_gpt2_folder), device="cpu")


def test_the_adapters_have_the_asked_share_of_parameters(
    tiny_gpt2_folder: Path, pairs: list[TokenPair]
) -> None:
    model = load(tiny_gpt2_folder)
    total = sum(p.numel() for p in model.hf.parameters())
    size = adapter_size(model, 0.1)
    trainer = Trainer(model, pairs, replace(RECIPE, method="adapter", adapter_share=0.1))
    trained = sum(p.numel() for p in trainer.parameters.values())
    assert trained == 2 * (2 * 32 * size + size + 3 * 32)
    assert trained == pytest.approx(0.1 * total, abs=2 * 65)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_lora_is_peft_s(tiny_gpt2_folder: Path, pairs: list[TokenPair]) -> None:
    trainer = Trainer(load(tiny_gpt2_folder), pairs, replace(RECIPE, method="lora", max_steps=5))
    trainer.run(quiet)
    plain = AutoModelForCausalLM.from_pretrained(tiny_gpt2_folder)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn"], fan_in_fan_out=True)
    theirs = get_peft_model(plain, config).eval()
    own = dict(theirs.base_model.model.named_parameters())
    with torch.no_grad():
        for name, value in trainer.state().items():
            own[name].copy_(value)
    ids = torch.tensor([pairs[0].prompt_ids])
    mine = dense_logits(trainer.model, ids)
    torch.testing.assert_close(mine, theirs(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("projection", [False, True])
def test_the_loss_of_pefts_prefix_is_the_one_that_peft_computes(
    family: str, projection: bool, model_folders: dict[str, Path], pairs: list[TokenPair]
) -> None:
    method = "peft-projection" if projection else "peft"
    trainer = Trainer(load(model_folders[family]), pairs, replace(RECIPE, method=method))
    plain = AutoModelForCausalLM.from_pretrained(model_folders[family])
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=3,
        encoder_hidden_size=32,
        prefix_projection=projection,
    )
    theirs = get_peft_model(plain, config).eval()
    own = dict(theirs.prompt_encoder["default"].named_parameters())
    with torch.no_grad():
        for name, value in trainer.parameters.items():
            own[name.removeprefix("encoder.")].copy_(value)
    rows = pairs[:4]
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for at, pair in enumerate(rows):
        ids[at, : len(pair)] = torch.tensor([*pair.prompt_ids, *pair.target_ids])
        mask[at, : len(pair)] = 1
        labels[at, len(pair.prompt_ids) : len(pair)] = torch.tensor(pair.target_ids)
    expected = theirs(input_ids=ids, attention_mask=mask, labels=labels).loss
    mine = trainer.loss_on(rows)
    torch.testing.assert_close(mine.mean, expected, rtol=1e-5, atol=1e-5)
    torch.autograd.backward(mine.mean)
    torch.autograd.backward(expected)
    for name, value in trainer.parameters.items():
        found = own[name.removeprefix("encoder.")].grad
        torch.testing.assert_close(value.grad, found, rtol=1e-4, atol=1e-6)


def test_an_embedding_acts_like_tokens_in_front_of_the_input(
    tiny_gpt2_folder: Path, pairs: list[TokenPair]
) -> None:
    trainer = Trainer(load(tiny_gpt2_folder), pairs, replace(RECIPE, method="embedding"))
    made = trainer.result()["decoder"]
    named = trainer.parameters
    hidden = torch.tanh(
        named["embedding.weight"] @ named["network.0.weight"].T + named["network.0.bias"]
    )
    virtual = hidden @ named["network.2.weight"].T + named["network.2.bias"]
    ids = torch.tensor([pairs[0].prompt_ids])
    plain = AutoModelForCausalLM.from_pretrained(tiny_gpt2_folder).eval()
    embedded = torch.cat([virtual[None], plain.get_input_embeddings()(ids)], dim=1)
    expected = plain(inputs_embeds=embedded).logits[:, 3:]
    mine = dense_logits(trainer.model, ids, made, position_offset=3)
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_an_infix_is_the_two_runs_of_the_authors(
    tiny_gpt2_folder: Path, pairs: list[TokenPair]
) -> None:
    """A run over [x; infix], trained values added in its cache, then a run over the target."""
    trainer = Trainer(load(tiny_gpt2_folder), pairs, replace(RECIPE, method="infix"))
    state = trainer.state()
    plain = AutoModelForCausalLM.from_pretrained(tiny_gpt2_folder).eval()
    total = 0.0
    for pair in pairs:
        *before, last = pair.prompt_ids
        embedded = plain.get_input_embeddings()(torch.tensor([before]))
        embedded = torch.cat([embedded, state["infix.tokens"][None]], dim=1)
        cache = plain(inputs_embeds=embedded, use_cache=True).past_key_values
        for layer in range(2):
            cache.layers[layer].keys[:, :, -3:] += state["infix.keys"][layer]
            cache.layers[layer].values[:, :, -3:] += state["infix.values"][layer]
        seen = keys_values_with_infix(trainer.model, state, pair.prompt_ids)
        torch.testing.assert_close(seen.keys[1], cache.layers[1].keys[0], rtol=1e-4, atol=1e-4)
        given = torch.tensor([[last, *pair.target_ids[:-1]]])
        logits = plain(given, past_key_values=cache).logits[0]
        total += cross_entropy(logits, torch.tensor(pair.target_ids), reduction="sum").item()
    assert trainer.loss_on(pairs).mean.item() == pytest.approx(total / len(pairs), rel=1e-4)


def test_words_start_a_direct_prefix_exactly_and_give_it_their_length(
    tiny_gpt2_folder: Path, tiny_bart_folder: Path, pairs: list[TokenPair]
) -> None:
    model = load(tiny_gpt2_folder)
    words = "the lazy dog and the fox"
    recipe = replace(RECIPE, method="prefix-direct", length=0, initial_words=words)
    trainer = Trainer(model, pairs, recipe)
    trainer.initialise()
    ids = torch.tensor(model.text.render(" {input}", words))
    expected = keys_values_of_embeddings(model, model.hf.get_input_embeddings()(ids))
    made = trainer.result()["decoder"]
    assert made.length == len(ids) == trainer.recipe.length
    torch.testing.assert_close(made.keys, expected.keys)
    bart = load(tiny_bart_folder)
    trainer = Trainer(bart, bart_pairs(bart), replace(recipe, length=4))
    trainer.initialise()
    assert {name: part.length for name, part in trainer.result().items()} == {
        "decoder": 4,
        "encoder": 4,
        "cross": 4,
    }


def test_accumulated_and_checkpointed_gradients_equal_those_of_one_batch(
    tiny_gpt2_folder: Path, pairs: list[TokenPair]
) -> None:
    states = []
    for changes in ({}, {"batch_size": 2, "accumulate": 2}, {"gradient_checkpointing": True}):
        recipe = replace(RECIPE, method="prefix-direct", max_steps=1, lr=1.0, **changes)
        trainer = Trainer(load(tiny_gpt2_folder), pairs, recipe)
        trainer.run(quiet)
        gradient = trainer.parameters["decoder.keys"].grad
        assert gradient is not None
        states.append(gradient)
    torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-6)
    assert torch.equal(states[2], states[0])


def test_a_run_stops_when_the_metric_no_longer_improves(
    tiny_gpt2_folder: Path, pairs: list[TokenPair]
) -> None:
    recipe = replace(RECIPE, metric="bleu", early_stopping=2, validate_every=1)
    scores = iter([3.0, 5.0, 4.0, 4.9, 9.0])
    model = load(tiny_gpt2_folder)
    trainer = Trainer(model, pairs, recipe, validation=pairs, score=lambda _: next(scores))
    reports: list[Report] = []
    trainer.run(reports.append)
    assert trainer.stopped_early
    assert [report.validation_score for report in reports] == [3.0, 5.0, 4.0, 4.9]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "prompt"}, "there is no 'prompt'; choose one of prefix"),
        ({"method": "lora", "initial_words": "x"}, "the method lora cannot start from it"),
        ({"method": "lora", "lora_targets": ("nowhere",)}, "no projections named nowhere"),
        ({"depth": 3}, "depth must be between 1 and 2"),
        ({"dtype": "fp8"}, "dtype must be `fp32` or `bf16`"),
        ({"metric": "bleu"}, "needs validation data; give a validation file"),
        ({"early_stopping": 2}, "early_stopping needs validation data"),
        ({"early_stopping": 2, "preset": "low-data"}, "early_stopping needs validation data"),
        ({"label_smoothing": 1.0}, "label_smoothing must be"),
    ],
)
def test_bad_settings_are_refused_with_the_reason(
    changes: dict[str, object], message: str, tiny_gpt2_folder: Path, pairs: list[TokenPair]
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Trainer(load(tiny_gpt2_folder), pairs, replace(RECIPE, **changes))  # type: ignore[arg-type]
    assert message in str(refused.value)


def test_only_prefix_methods_give_a_prefix(tiny_gpt2_folder: Path, pairs: list[TokenPair]) -> None:
    for method in PREFIX_METHODS:
        assert Trainer(load(tiny_gpt2_folder), pairs, replace(RECIPE, method=method)).result()
    with pytest.raises(InvalidRequest, match="the method infix does not give a prefix"):
        Trainer(load(tiny_gpt2_folder), pairs, replace(RECIPE, method="infix")).result()
