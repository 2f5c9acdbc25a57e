"""Scores of a base model, alone or with a prefix: texts decoded by the engine, compared by BLEU.

Knows nothing about training, files of data or stores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from app.engine.config import EngineConfig
from app.engine.engine import Engine
from app.engine.offline import complete
from app.engine.request import GenerationRequest, SamplingParams
from app.errors import InvalidRequest, PolyprefixError
from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix
from app.training.data import DEFAULT_TEMPLATE, Example

DEFAULT_MAX_TOKENS = 128
_TENANT = "evaluation"
_ENGINE_CONFIG = EngineConfig(max_rows=32, max_waiting=4096, kv_bytes=512 << 20)


@dataclass(frozen=True)
class Evaluation:
    """What a model said to every example and its corpus BLEU (0 to 100)."""

    bleu: float
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
    """Greedy texts for all `examples` on a started engine, and their BLEU.

    Template and decoding defaults are the prefix's own unless they are given.
    """
    texts = generate_texts(engine, examples, prefix=prefix, template=template, decoding=decoding)
    bleu, signature = corpus_bleu(texts, [example.targets for example in examples])
    return Evaluation(bleu, tuple(texts), signature)


def generate_texts(
    engine: Engine,
    examples: Sequence[Example],
    *,
    prefix: Prefix | None = None,
    template: str | None = None,
    decoding: Mapping[str, Any] | None = None,
) -> list[str]:
    """One greedy text per example, stripped of surrounding space; no longer than the context."""
    own_template = prefix.metadata.input_template if prefix is not None else None
    own_decoding = prefix.metadata.decoding if prefix is not None else {}
    used = template or own_template or DEFAULT_TEMPLATE
    asked = {**own_decoding, **(decoding or {})}
    room = engine.model.spec.context_limit - (prefix.metadata.position_offset if prefix else 0)
    prompts = [tuple(engine.model.text.render(used, example.input)) for example in examples]
    requests = [
        GenerationRequest(
            id=f"{_TENANT}-{number}",
            tenant=_TENANT,
            prompt_ids=prompt,
            sampling=_sampling(asked, room - len(prompt)),
            prefixes=() if prefix is None else (prefix,),
        )
        for number, prompt in enumerate(prompts)
    ]
    return [completion.texts[0].strip() for completion in complete(engine, requests)]


def corpus_bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    """BLEU as E2E's and DART's own scorers compute it (lower-cased, 13a tokens), and its signature.

    The number of references may differ from text to text.
    """
    if not texts or len(texts) != len(references):
        raise InvalidRequest("BLEU needs as many lists of references as texts, and at least one")
    try:
        from sacrebleu.metrics import BLEU
    except ModuleNotFoundError as error:
        raise PolyprefixError("BLEU needs sacrebleu: pip install 'polyprefix[train]'") from error
    most = max(len(of_text) for of_text in references)
    streams = [
        [of_text[number] if number < len(of_text) else None for of_text in references]
        for number in range(most)
    ]
    metric = BLEU(lowercase=True, tokenize="13a")
    score = metric.corpus_score(list(texts), streams)
    return float(score.score), str(metric.get_signature())


def _sampling(decoding: Mapping[str, Any], room: int) -> SamplingParams:
    asked = int(decoding.get("max_tokens", DEFAULT_MAX_TOKENS))
    return SamplingParams(
        max_tokens=max(1, min(asked, room)),
        stop=tuple(decoding.get("stop", ())),
    )
