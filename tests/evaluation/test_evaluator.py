"""Answers and losses come from the engine, by the prefix's own template and decoding defaults."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from transformers import BartForConditionalGeneration

from app.datasets.example import Example
from app.engine.decoding.beam_search import BeamParams
from app.engine.request import GenerationRequest
from app.evaluation import evaluator
from app.evaluation.evaluator import EngineRunner, Evaluator, evaluate, running_engine
from app.evaluation.likelihood import target_loss
from app.evaluation.text_pairs import TokenPair
from app.model.frozen import FrozenModel
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from tests.tiny import CONTEXT, random_prefix


def test_evaluation_uses_the_prefix_its_template_and_its_limit(tiny_gpt2: FrozenModel) -> None:
    shape = tiny_gpt2.spec.decoder
    generator = torch.Generator().manual_seed(1)
    size = (shape.layers, shape.kv_heads, 4, shape.head_dim)
    keys, values = (torch.randn(size, generator=generator) for _ in range(2))
    metadata = PrefixMetadata(4, input_template="{input} ?", decoding={"max_tokens": 3})
    prefix = Prefix({"decoder": KeyValues(keys, values)}, metadata)
    examples = [Example("the fox", ("the dog",), 1), Example("a cat", ("the mat", "a mat"), 2)]
    with running_engine(tiny_gpt2) as engine:
        tuned = evaluate(engine, examples, prefix=prefix)
        longer = evaluate(engine, examples, prefix=prefix, decoding={"max_tokens": 12})
        base = evaluate(engine, examples, decoding={"max_tokens": 5})
        other = evaluate(engine, examples, prefix=prefix, template="{input} !")
    assert len(tuned.texts) == 2
    for short, long in zip(tuned.texts, longer.texts, strict=True):
        assert len(short) < len(long)
        assert long.startswith(short.rstrip("\ufffd"))
    assert tuned.texts != base.texts
    assert tuned.texts != other.texts
    assert 0 <= tuned.bleu <= 100


class Asked(Exception):
    """Carries what the engine would have been asked."""


def asked_of(
    model: FrozenModel, decoding: dict[str, object], monkeypatch: pytest.MonkeyPatch, text: str
) -> GenerationRequest:
    """The request that evaluation makes of one example, with a prefix of such defaults."""

    def stop(_: object, requests: list[GenerationRequest]) -> NoReturn:
        raise Asked(requests)

    monkeypatch.setattr(evaluator, "complete_all", stop)
    prefix = random_prefix(model, 4)
    metadata = replace(prefix.metadata, decoding=decoding)
    with running_engine(model) as engine, pytest.raises(Asked) as caught:
        evaluate(engine, [Example(text, ("",), 1)], prefix=Prefix(prefix.modules, metadata))
    [request] = caught.value.args[0]
    return request


DECODING = {
    "max_tokens": 500,
    "min_tokens": 3,
    "num_beams": 4,
    "length_penalty": 0.6,
    "no_repeat_ngram_size": 3,
    "repetition_penalty": 1.2,
    "stop": ["."],
    "temperature": 0.7,
}


def test_a_prefixs_decoding_defaults_reach_the_engine(
    tiny_gpt2: FrozenModel, tiny_bart: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in (tiny_gpt2, tiny_bart):
        request = asked_of(model, DECODING, monkeypatch, "the fox")
        sampling = request.sampling
        assert sampling.beam == BeamParams(4, length_penalty=0.6)
        assert (sampling.min_tokens, sampling.no_repeat_ngram_size) == (3, 3)
        assert (sampling.repetition_penalty, sampling.stop) == (1.2, (".",))
        assert sampling.temperature == 0, "scores are of the most probable text"
        taken = 1 if model is tiny_bart else len(request.prompt_ids)
        assert sampling.max_tokens == CONTEXT - 4 - taken
        assert asked_of(model, {}, monkeypatch, "the fox").sampling.beam is None


def test_sources_are_cut_to_what_the_encoder_reads(
    tiny_bart: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked_of(tiny_bart, {}, monkeypatch, "the fox " * 200)
    assert len(request.prompt_ids) == CONTEXT
    assert (request.prompt_ids[0], request.prompt_ids[-1]) == (0, 2)


def test_beam_search_with_an_encoder_equals_transformers(
    tiny_bart: FrozenModel, tiny_bart_folder: Path
) -> None:
    decoding = {"max_tokens": 9, "num_beams": 3, "no_repeat_ngram_size": 2, "length_penalty": 0.4}
    example = Example("the lazy dog", ("the mat",), 1)
    with running_engine(tiny_bart) as engine:
        (text,) = evaluate(engine, [example], decoding=decoding).texts
    plain = BartForConditionalGeneration.from_pretrained(tiny_bart_folder).eval()
    found = plain.generate(
        torch.tensor([tiny_bart.text.encode(example.input)]),
        max_new_tokens=9,
        num_beams=3,
        no_repeat_ngram_size=2,
        length_penalty=0.4,
        early_stopping=False,
        do_sample=False,
    )
    assert text == tiny_bart.text.decode(found[0].tolist()[1:]).strip()


def test_early_stopping_reaches_the_engine(
    tiny_bart: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding = {"num_beams": 2, "early_stopping": "never"}
    request = asked_of(tiny_bart, decoding, monkeypatch, "the fox")
    assert request.sampling.beam == BeamParams(2, early_stopping="never")


def test_losses_from_the_engine_are_those_of_full_logits(
    tiny_gpt2: FrozenModel, tiny_bart: FrozenModel
) -> None:
    for model in (tiny_gpt2, tiny_bart):
        prefix = random_prefix(model, 3)
        pairs = [TokenPair((5, 6, 7), (8, 9)), TokenPair((5,), (10, 11, 12))]
        with running_engine(model) as engine:
            losses = asyncio.run(Evaluator(model, prefix, EngineRunner(engine)).losses(pairs))
        expected = [target_loss(model, prefix, pair) for pair in pairs]
        assert losses == pytest.approx(expected, abs=1e-4)


def test_only_what_the_metrics_need_is_computed(tiny_gpt2: FrozenModel) -> None:
    pairs = [[TokenPair((5, 6), (8, 9)), TokenPair((5, 6), (10,))], [TokenPair((7,), (9, 9, 9))]]
    prompts = [(5, 6), (7,)]
    with running_engine(tiny_gpt2) as engine:
        evaluator = Evaluator(tiny_gpt2, None, EngineRunner(engine), {"max_tokens": 3})
        said = asyncio.run(evaluator.answers(prompts))
        references = [[f" {said[0].text} ", "b"], [f"not {said[1].text}"]]
        matched = asyncio.run(evaluator.evaluate(prompts, references, ["exact_match"]))
        scored = asyncio.run(evaluator.evaluate(prompts, references, ["loss"], pairs))
    assert matched.matches == [True, False]
    assert matched.score("exact_match") == 50
    assert not matched.losses
    assert not scored.answers
    assert scored.num_tokens == 6
    sums = [loss * count for loss, count in zip(scored.losses, (3, 3), strict=True)]
    assert scored.score("loss") == pytest.approx(sum(sums) / 6)
