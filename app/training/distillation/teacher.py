"""What the teacher says: next-token distributions of exchanges with the text in context."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import torch

from app.evaluation.evaluator import OFFLINE, running_engine
from app.evaluation.text_pairs import TokenPair
from app.model.dense import keys_values_of
from app.model.frozen import FrozenModel
from app.model.sequences.packed_tokens import packed_logits
from app.prefix.prefix import KeyValues
from app.training.batches import collate
from app.training.distillation.document import TextPart
from app.training.distillation.exchanges import ExchangeMaker, ExchangeSettings, TextExchange
from app.training.distillation.framing import Framing

TOP_TOKENS = 32
"""How many of the teacher's most probable tokens are kept at each position."""
_ROWS = 8
_HELD_OUT_SHARE = 8
_MAX_HELD_OUT = 32

PrepareReport = Callable[[str, int, int], None]
"""Gets what is being made, how much of it is done, and how much there is. It may raise to end."""


@dataclass(frozen=True, eq=False)
class TaughtPair(TokenPair):
    """A prompt and an answer with the teacher's distributions at the answer's tokens.

    `token_ids` [answer, k], int32, are the most probable tokens. `chances` [answer, k + 1], fp32,
    are their probabilities and that of all other tokens together. Both are on the host.
    """

    token_ids: torch.Tensor
    chances: torch.Tensor


def taught_pairs(
    model: FrozenModel,
    framing: Framing,
    parts: Sequence[TextPart],
    exchanges: Sequence[TextExchange],
    report: Callable[[int, int], None],
    *,
    top_tokens: int = TOP_TOKENS,
) -> list[TaughtPair]:
    """The exchanges with the distributions of `model` that has their part in context, in order.

    A part's context is read once: its keys and values stand before all exchanges about it.
    `report` gets the number of exchanges done and of all.
    """
    made: dict[int, TaughtPair] = {}
    numbered = sorted(enumerate(exchanges), key=lambda pair: pair[1].part)
    for part, group in groupby(numbered, key=lambda pair: pair[1].part):
        context = framing.context_ids(model.text, parts[part].token_ids)
        modules = {"decoder": keys_values_of(model, context)}
        about = sorted(group, key=lambda pair: len(_pair(pair[1])))
        for start in range(0, len(about), _ROWS):
            report(len(made), len(exchanges))
            rows = about[start : start + _ROWS]
            pairs = [_pair(exchange) for _, exchange in rows]
            taught = _taught(model, modules, pairs, len(context), top_tokens)
            made |= dict(zip((number for number, _ in rows), taught, strict=True))
    report(len(exchanges), len(exchanges))
    return [made[number] for number in range(len(exchanges))]


def made_pairs(
    model: FrozenModel,
    framing: Framing,
    parts: Sequence[TextPart],
    settings: ExchangeSettings,
    report: PrepareReport,
) -> list[TaughtPair]:
    """Exchanges that the model makes about the parts, with its own distributions."""
    # a part's context is served as a prefix, which may be longer than tenants' prefixes
    config = replace(OFFLINE, max_prefix_length=model.spec.context_limit)
    with running_engine(model, config) as engine:
        maker = ExchangeMaker(engine, framing, settings)
        exchanges = maker.all_of(parts, partial(report, "exchanges"))
    return taught_pairs(model, framing, parts, exchanges, partial(report, "teacher"))


def split_pairs(
    pairs: Sequence[TaughtPair], seed: int
) -> tuple[list[TaughtPair], list[TaughtPair]]:
    """Pairs to train on and held-out pairs: an eighth, at least one and at most 32."""
    order = list(range(len(pairs)))
    random.Random(f"{seed}:held-out").shuffle(order)
    count = max(1, min(_MAX_HELD_OUT, len(pairs) // _HELD_OUT_SHARE))
    return [pairs[n] for n in sorted(order[count:])], [pairs[n] for n in sorted(order[:count])]


def pairs_as_tensors(pairs: Sequence[TaughtPair]) -> dict[str, torch.Tensor]:
    """The pairs as named tensors, for a checkpoint."""
    return {
        "lengths": torch.tensor([[len(p.prompt_ids), len(p.target_ids)] for p in pairs]),
        "ids": torch.tensor([token for p in pairs for token in p.prompt_ids + p.target_ids]),
        "token_ids": torch.cat([pair.token_ids for pair in pairs]),
        "chances": torch.cat([pair.chances for pair in pairs]),
    }


def pairs_of_tensors(tensors: Mapping[str, torch.Tensor]) -> list[TaughtPair]:
    """The pairs that `pairs_as_tensors` has returned."""
    ids: Iterator[int] = iter(tensors["ids"].tolist())
    pairs, at = [], 0
    for prompt, target in tensors["lengths"].tolist():
        rows = slice(at, at + target)
        pairs.append(
            TaughtPair(
                tuple(next(ids) for _ in range(prompt)),
                tuple(next(ids) for _ in range(target)),
                tensors["token_ids"][rows],
                tensors["chances"][rows],
            )
        )
        at += target
    return pairs


def _pair(exchange: TextExchange) -> TokenPair:
    return TokenPair(exchange.prompt_ids, exchange.answer_ids)


@torch.no_grad()
def _taught(
    model: FrozenModel,
    modules: Mapping[str, KeyValues],
    pairs: Sequence[TokenPair],
    offset: int,
    top_tokens: int,
) -> list[TaughtPair]:
    """The distributions of pairs that are sorted by their length, behind a context."""
    batch = collate(pairs, position_offset=offset, device=model.device)
    logits = packed_logits(model, batch.tokens, modules, batch.keep).squeeze(0)
    taught, at = [], 0
    for pair in pairs:
        rows = logits[at : at + len(pair.target_ids)]
        at += len(pair.target_ids)
        chances = rows.double().softmax(dim=-1)
        known, token_ids = chances.topk(min(top_tokens, chances.shape[1] - 1), dim=-1)
        rest = (1 - known.sum(dim=-1, keepdim=True)).clamp(min=0)
        both = torch.cat([known, rest], dim=-1).float().cpu()
        taught.append(TaughtPair(pair.prompt_ids, pair.target_ids, token_ids.int().cpu(), both))
    return taught
