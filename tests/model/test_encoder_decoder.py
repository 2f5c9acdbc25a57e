"""The two halves of BART called apart: planned positions, start tokens, a cache of nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BartForConditionalGeneration, GenerationConfig

from app.errors import UnsupportedModel
from app.model.attention import DensePlan
from app.model.dense import dense_pair_logits
from app.model.encoder_decoder import EncoderDecoder
from app.model.frozen import FrozenModel
from app.model.generation_defaults import ReplyFrame, reply_frame
from app.model.load import load_model
from tests.equivalence.bart_reference import decoder_logits, encoded, plain_bart
from tests.tiny import bart_config, random_prefix, train_bart_tokenizer

SOURCE, TARGET = tuple(range(30, 51)), (2, 7, 9, 11, 13)


@pytest.fixture
def halves(tiny_bart: FrozenModel) -> EncoderDecoder:
    found = tiny_bart.encoder_decoder
    assert found is not None
    return found


def places(*first: int, tokens: int) -> torch.Tensor:
    """Positions of one long row that is made of several, each from its own `first`."""
    return torch.tensor([[place for start in first for place in range(start, start + tokens)]])


class Apart(DensePlan):
    """Two rows laid end to end, each of which attends to itself alone."""

    def __init__(self, tokens: int) -> None:
        super().__init__({})
        self._tokens = tokens

    def attend(
        self,
        role: str,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        parts = [
            super(Apart, self).attend(
                role, layer, *(part[:, :, at] for part in (query, key, value)), scaling
            )
            for at in (slice(0, self._tokens), slice(self._tokens, None))
        ]
        return torch.cat(parts, dim=1)


@torch.inference_mode()
def test_the_encoder_gives_each_token_the_position_that_it_is_told(
    halves: EncoderDecoder, tiny_bart_folder: Path
) -> None:
    """Two sources in one row; the second one's positions begin again."""
    tokens = len(SOURCE)
    both = torch.tensor([SOURCE + SOURCE[::-1]])
    output = halves.encode(both, places(0, 0, tokens=tokens), Apart(tokens))[0]
    plain = plain_bart(tiny_bart_folder)
    for at, ids in ((slice(0, tokens), SOURCE), (slice(tokens, None), SOURCE[::-1])):
        expected = encoded(plain, [], ids)
        for layer in range(halves.decoder_layers):
            keys, values = halves.cross_keys_values(layer, output[at])
            assert keys.shape == (tokens, 4, 8)
            assert float((keys.transpose(0, 1) - expected[0, layer]).abs().max()) <= 1e-4
            assert float((values.transpose(0, 1) - expected[1, layer]).abs().max()) <= 1e-4
    shifted = halves.encode(both, places(0, 1, tokens=tokens), Apart(tokens))[0]
    assert torch.equal(shifted[:tokens], output[:tokens])
    assert float((shifted[tokens:] - output[tokens:]).abs().max()) > 0.1


class OverSource(DensePlan):
    """As in a step: across, the plan knows the keys and values, and the model hands on nothing."""

    def __init__(self, stored: torch.Tensor) -> None:
        super().__init__({})
        self._stored = stored
        self.roles: list[tuple[str, int]] = []

    def attend(
        self,
        role: str,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        self.roles.append((role, layer))
        if role == "cross":
            assert key.numel() == value.numel() == 0
            key, value = self._stored[:, layer, None]
        return super().attend(role, layer, query, key, value, scaling)


@torch.inference_mode()
def test_the_decoder_takes_what_it_attends_to_across_from_the_plan(
    halves: EncoderDecoder, tiny_bart_folder: Path
) -> None:
    plain = plain_bart(tiny_bart_folder)
    plan = OverSource(encoded(plain, [], SOURCE))
    ids, positions = torch.tensor([TARGET]), torch.arange(len(TARGET))[None]
    logits = halves.decode(ids, positions, plan)[0]
    assert plan.roles == [(role, layer) for layer in (0, 1) for role in ("decoder", "cross")]
    expected = decoder_logits(plain, [], SOURCE, (*TARGET[1:], 0))
    assert float((logits - expected).abs().max()) <= 1e-4
    kept = halves.decode(ids, positions, plan, torch.tensor([4, 1]))[0]
    assert torch.equal(kept, logits[[4, 1]])
    moved = halves.decode(ids, positions + 5, plan)[0]
    assert float((moved - logits).abs().max()) > 0.1


@torch.inference_mode()
def test_the_bias_of_the_logits_is_added(tiny_bart_folder: Path, tmp_path: Path) -> None:
    """Zero in every checkpoint that was not tuned for it, so that its lack would go unseen."""
    folder = tmp_path / "biased"
    biased = BartForConditionalGeneration.from_pretrained(tiny_bart_folder)
    biased.final_logits_bias[0, 7] = 3.0
    biased.save_pretrained(folder)
    train_bart_tokenizer().save_pretrained(folder)
    model = load_model(str(folder), device="cpu", dtype="float32")
    assert model.encoder_decoder is not None
    stored = encoded(plain_bart(folder), [], SOURCE)
    ids, positions = torch.tensor([TARGET]), torch.arange(len(TARGET))[None]
    logits = model.encoder_decoder.decode(ids, positions, OverSource(stored))[0]
    with_bias, without = (
        decoder_logits(plain_bart(each), [], SOURCE, (*TARGET[1:], 0))
        for each in (folder, tiny_bart_folder)
    )
    assert float((with_bias - without)[:, 7].min()) > 2.9
    assert float((logits - with_bias).abs().max()) <= 1e-4


@torch.inference_mode()
def test_outside_a_planned_pass_positions_are_the_models_own(
    tiny_bart: FrozenModel, tiny_bart_folder: Path
) -> None:
    """Training calls both halves at once, padded, with prefixes in all three kinds of attention."""
    prefix = random_prefix(tiny_bart, 4, encoder=3, cross=6, position_offset=0)
    sources = torch.tensor([SOURCE, (*SOURCE[:9], *[1] * 12)])
    mask = torch.ones(2, len(SOURCE), dtype=torch.bool)
    mask[1, 9:] = False
    logits = dense_pair_logits(
        tiny_bart, sources, mask, torch.tensor([TARGET, TARGET[::-1]]), prefix.modules
    )
    plain = plain_bart(tiny_bart_folder)
    ours = ((SOURCE, TARGET, logits[0]), (SOURCE[:9], TARGET[::-1], logits[1]))
    for source, target, found in ours:
        model = plain.model
        assert model.decoder.embed_positions.offset == 2
        forced = (*target[1:], 0)
        started = plain.generation_config.decoder_start_token_id
        plain.generation_config.decoder_start_token_id = target[0]
        try:
            expected = decoder_logits(plain, [prefix], source, forced)
        finally:
            plain.generation_config.decoder_start_token_id = started
        assert float((found - expected).abs().max()) <= 1e-4


# --- start tokens ------------------------------------------------------------------------------


def module_with(
    generation: dict[str, object] | None = None, **config: object
) -> BartForConditionalGeneration:
    module = BartForConditionalGeneration(bart_config(**config))
    module.generation_config = GenerationConfig(**(generation or {}))
    return module


def test_start_tokens_are_those_of_the_generation_config() -> None:
    said = {
        "decoder_start_token_id": 5,
        "forced_bos_token_id": 6,
        "forced_eos_token_id": 7,
    }
    assert reply_frame(module_with(said)) == ReplyFrame(5, 6, 7)


def test_what_the_generation_config_leaves_open_is_in_the_config() -> None:
    module = module_with(decoder_start_token_id=8)
    module.config.forced_bos_token_id = 9
    module.config.forced_eos_token_id = None
    assert reply_frame(module) == ReplyFrame(8, 9, None)


def test_of_several_forced_last_tokens_the_first_is_taken() -> None:
    said = {"decoder_start_token_id": 5, "forced_eos_token_id": [7, 8]}
    assert reply_frame(module_with(said)).forced_last == 7


def test_a_model_that_does_not_say_how_to_start_is_refused() -> None:
    module = module_with()
    module.config.decoder_start_token_id = None
    with pytest.raises(UnsupportedModel, match="names a decoder_start_token_id"):
        reply_frame(module)


def test_a_loaded_bart_says_what_prefixes_of_all_its_modules_look_like(
    tiny_bart_folder: Path,
) -> None:
    model = load_model(str(tiny_bart_folder), device="cpu", dtype="float32")
    shapes = {
        name: (shape.layers, shape.kv_heads, shape.head_dim)
        for name, shape in model.spec.modules.items()
    }
    assert shapes == {"decoder": (2, 4, 8), "encoder": (3, 2, 16), "cross": (2, 4, 8)}
    assert (model.spec.context_limit, model.spec.source_limit) == (128, 128)
    assert model.generation.frame == ReplyFrame(2, None, 2)
