"""Scores of a base model, alone or with a prefix: texts decoded by the engine, then compared.

Knows nothing about training, files of data or stores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from app.engine.config import EngineConfig
from app.engine.decoding.beam_search import beam_params
from app.engine.engine import Engine
from app.engine.offline import complete
from app.engine.request import GenerationRequest, SamplingParams
from app.evaluation.metrics import Rouge, corpus_bleu, mean_rouge
from app.evaluation.text_pairs import Example, default_template
from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix

DEFAULT_MAX_TOKENS = 128
_TENANT = "evaluation"
_ENGINE_CONFIG = EngineConfig(max_rows=64, max_waiting=4096, kv_bytes=512 << 20)
_PASSED_ON = (
    "min_tokens",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
)


@dataclass(frozen=True)
class Evaluation:
    """What a model said to every example, its corpus BLEU and mean ROUGE (0 to 100).

    `signature` says how BLEU was computed.
    """

    bleu: float
    rouge: Rouge
    texts: tuple[str, ...]
    signature: str


@contextmanager
def running_engine(model: FrozenModel) -> Iterator[Engine]:
    """An engine for offline work, stopped at the end of the block."""
    engine = Engine(model, _ENGINE_CONFIG)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def evaluate(
    engine: Engine,
    examples: Sequence[Example],
    *,
    prefix: Prefix | None = None,
    template: str | None = None,
    decoding: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Texts for all `examples` on a started engine, and their scores.

    Template and decoding defaults are the prefix's own unless they are given.
    """
    texts = generate_texts(engine, examples, prefix=prefix, template=template, decoding=decoding)
    references = [example.targets for example in examples]
    bleu, signature = corpus_bleu(texts, references)
    return Evaluation(bleu, mean_rouge(texts, references), tuple(texts), signature)


def generate_texts(
    engine: Engine,
    examples: Sequence[Example],
    *,
    prefix: Prefix | None = None,
    template: str | None = None,
    decoding: Mapping[str, Any] | None = None,
) -> list[str]:
    """One text per example, stripped of surrounding space; no longer than the context.

    The most probable one by greedy or, with `num_beams`, by beam search: what draws at random in
    `decoding` is left aside. Sources are cut to what an encoder reads.
    """
    spec, text = engine.model.spec, engine.model.text
    own_template = prefix.metadata.input_template if prefix is not None else None
    own_decoding = prefix.metadata.decoding if prefix is not None else {}
    used = template or own_template or default_template(text, has_encoder=_has_encoder(engine))
    generation = engine.model.generation
    asked = {**generation.decoding, **own_decoding, **(decoding or {})}
    room = spec.context_limit - (prefix.metadata.position_offset if prefix else 0)
    prompts = [
        text.cut_source(text.render(used, example.input), spec.source_limit) for example in examples
    ]

    def request(number: int, prompt: tuple[int, ...]) -> GenerationRequest:
        before = 1 if _has_encoder(engine) else len(prompt)
        options = {"min_tokens": generation.min_tokens(before), **asked}
        return GenerationRequest(
            id=f"{_TENANT}-{number}",
            tenant=_TENANT,
            prompt_ids=prompt,
            sampling=_sampling(options, room - before),
            prefixes=() if prefix is None else (prefix,),
        )

    requests = [request(number, prompt) for number, prompt in enumerate(prompts)]
    return [completion.texts[0].strip() for completion in complete(engine, requests)]


def _has_encoder(engine: Engine) -> bool:
    return engine.model.encoder_decoder is not None


def _sampling(decoding: Mapping[str, Any], room: int) -> SamplingParams:
    asked = int(decoding.get("max_tokens", DEFAULT_MAX_TOKENS))
    return SamplingParams(
        max_tokens=max(1, min(asked, room)),
        stop=tuple(decoding.get("stop", ())),
        beam=beam_params(decoding),
        **{name: decoding[name] for name in _PASSED_ON if name in decoding},
    )
