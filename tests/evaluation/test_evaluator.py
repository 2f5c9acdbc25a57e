"""Texts come from the engine, by the prefix's own template and decoding defaults."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from transformers import BartForConditionalGeneration

from app.engine.decoding.beam_search import BeamParams
from app.engine.request import GenerationRequest
from app.evaluation import evaluator
from app.evaluation.evaluator import evaluate, generate_texts, running_engine
from app.evaluation.text_pairs import Example
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
        generate_texts(engine, [Example(text, ("",), 1)], prefix=Prefix(prefix.modules, metadata))
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


def test_an_encoder_is_told_the_source_alone_and_searched_as_transformers_does(
    tiny_bart: FrozenModel, tiny_bart_folder: Path
) -> None:
    decoding = {"max_tokens": 9, "num_beams": 3, "no_repeat_ngram_size": 2, "length_penalty": 0.4}
    example = Example("the lazy dog", ("the mat",), 1)
    with running_engine(tiny_bart) as engine:
        (text,) = generate_texts(engine, [example], decoding=decoding)
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


def test_what_is_scored_stops_its_search_as_what_is_served_does(
    tiny_bart: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding = {"num_beams": 2, "early_stopping": "never"}
    request = asked_of(tiny_bart, decoding, monkeypatch, "the fox")
    assert request.sampling.beam == BeamParams(2, early_stopping="never")
