"""Beam search twice: by plain transformers, and by `BeamSearch` in a loop of full forwards."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationMixin,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from app.engine.decoding.beam_search import BeamParams, BeamSearch, Hypothesis
from tests.engine.rowwise import banned_tokens
from tests.tiny import gpt2_config

WORDS = 24
"""So few that end-of-text comes up often, and that bans leave fewer than a step asks for."""

START = 2


def make_gpt2() -> PreTrainedModel:
    """A random GPT-2 of one layer."""
    torch.manual_seed(0)
    config = gpt2_config(vocab_size=WORDS, n_layer=1, n_embd=16, eos_token_id=None)
    return GPT2LMHeadModel(config).eval()


def make_bart() -> PreTrainedModel:
    """A random BART of one encoder and one decoder layer."""
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=WORDS,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        init_std=0.4,
        decoder_start_token_id=START,
        eos_token_id=None,
        forced_eos_token_id=None,
    )
    return BartForConditionalGeneration(config).eval()


@dataclass(frozen=True)
class Case:
    """A search; `prompt` is the source where the model has an encoder."""

    prompt: tuple[int, ...]
    params: BeamParams
    max_tokens: int
    eos: tuple[int, ...] = ()
    num_results: int = 1
    min_tokens: int = 0
    forced_bos: int | None = None
    forced_eos: int | None = None
    banned: tuple[int, ...] = ()
    ngram: int = 0


def random_cases(
    count: int, length_penalty: float, early_stopping: bool | Literal["never"], *, forced: bool
) -> list[Case]:
    """Searches of every kind; `forced` ones may have their first and last token given."""
    draw = random.Random(f"{length_penalty} {early_stopping} {forced}")
    cases = []
    for _ in range(count):
        num_beams = draw.randint(1, 6)
        max_tokens = draw.randint(1, 14)
        eos = tuple(draw.sample(range(WORDS), draw.choice([0, 1, 2, 2, 2])))
        forced_bos = draw.choice([None, 7, *eos]) if forced else None
        forced_eos = draw.choice([None, 9, *eos]) if forced else None
        free = sorted(set(range(WORDS)) - {forced_bos, forced_eos})
        case = Case(
            tuple(draw.choices(range(WORDS), k=draw.randint(1, 5))),
            BeamParams(num_beams, length_penalty, early_stopping),
            max_tokens,
            eos,
            num_results=draw.randint(1, num_beams),
            min_tokens=min(max_tokens, draw.choice([0, 0, 3])),
            forced_bos=forced_bos,
            forced_eos=forced_eos,
            banned=tuple(draw.sample(free, draw.choice([0, 0, 3]))),
            ngram=draw.choice([0, 0, 1, 2, 3]),
        )
        cases.append(case)
    return cases


@dataclass(frozen=True)
class Found:
    """A result of transformers."""

    token_ids: tuple[int, ...]
    score: float


@torch.no_grad()
def by_transformers(model: PreTrainedModel, case: Case) -> list[Found]:
    """What `model.generate` finds."""
    params = case.params
    # with one beam `generate` would not search but take the most probable token
    method = {"custom_generate": GenerationMixin._beam_search} if params.num_beams == 1 else {}
    output = model.generate(
        torch.tensor([case.prompt]),
        attention_mask=torch.ones(1, len(case.prompt), dtype=torch.long),
        do_sample=False,
        num_beams=params.num_beams,
        num_return_sequences=case.num_results,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        no_repeat_ngram_size=case.ngram,
        max_new_tokens=case.max_tokens,
        min_new_tokens=case.min_tokens or None,
        eos_token_id=list(case.eos) or None,
        pad_token_id=0,
        forced_bos_token_id=case.forced_bos,
        forced_eos_token_id=case.forced_eos,
        suppress_tokens=list(case.banned) or None,
        output_scores=True,
        return_dict_in_generate=True,
        use_cache=False,
        **method,
    )
    start = 1 if model.config.is_encoder_decoder else len(case.prompt)
    lengths = (output.beam_indices >= 0).sum(dim=1).tolist()
    return [
        Found(tuple(row[start : start + length]), score)
        for row, length, score in zip(
            output.sequences.tolist(), lengths, output.sequences_scores.tolist(), strict=True
        )
    ]


@torch.no_grad()
def by_hand(model: PreTrainedModel, case: Case) -> list[Hypothesis]:
    """What `BeamSearch` finds when it is fed from full forward passes."""
    search = BeamSearch(case.params, case.max_tokens, case.eos, case.num_results)
    source = case.prompt if model.config.is_encoder_decoder else None
    start = [START] if source else list(case.prompt)
    rows = [start]
    for step in range(case.max_tokens):
        assert [tuple(row[len(start) :]) for row in rows] == list(search.running)
        logprobs = torch.log_softmax(_logits(model, source, rows), dim=-1)
        for row, scores in zip(rows, logprobs, strict=True):
            _process(scores, row, case, step)
        top = logprobs.topk(min(search.candidates_per_beam, WORDS))
        advance = search.advance(
            [
                list(zip(ids, values, strict=True))
                for ids, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ]
        )
        if advance is None:
            break
        rows = [
            [*rows[parent], token]
            for parent, token in zip(advance.parents, advance.tokens, strict=True)
        ]
    assert search.done
    return search.results()


def _logits(
    model: PreTrainedModel, source: tuple[int, ...] | None, rows: list[list[int]]
) -> torch.Tensor:
    ids = torch.tensor(rows)
    if source is None:
        return model(ids, use_cache=False).logits[:, -1]
    sources = torch.tensor([source] * len(rows))
    return model(sources, decoder_input_ids=ids, use_cache=False).logits[:, -1]


def _process(scores: torch.Tensor, row: list[int], case: Case, step: int) -> None:
    """The processors, in transformers' order, on the log-probabilities of one row, in place."""
    scores[list(banned_tokens(row, case.ngram))] = -math.inf
    if step < case.min_tokens:
        scores[list(case.eos)] = -math.inf
    forced_bos = case.forced_bos if len(row) == 1 else None
    forced_eos = case.forced_eos if step == case.max_tokens - 1 else None
    for forced in (forced_bos, forced_eos):
        if forced is not None:
            scores[:] = -math.inf
            scores[forced] = 0
    scores[list(case.banned)] = -math.inf
