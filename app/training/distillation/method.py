"""Distillation as a training method: the loss is the divergence from the teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from app.errors import InvalidRequest
from app.model.frozen import FrozenModel
from app.model.sequences.packed_tokens import packed_logits
from app.prefix.prefix import KeyValues
from app.training.batches import by_length, collate
from app.training.distillation.divergence import summed_divergence
from app.training.distillation.teacher import TaughtPair
from app.training.methods.direct import DirectKeyValues
from app.training.methods.prefix_method import PrefixMethod
from app.training.objective import Loss, PrefixedRows
from app.training.recipe import Recipe


def divergence_of(model: FrozenModel, rows: PrefixedRows) -> Loss:
    """KL(teacher ‖ student) of the answers' tokens in nats per token, with gradients.

    The count is that of the tokens. Raises InvalidRequest unless all pairs are `TaughtPair`s.
    """
    taught = [pair for pair in rows.pairs if isinstance(pair, TaughtPair)]
    if len(taught) != len(rows.pairs) or rows.label_smoothing:
        raise InvalidRequest(
            "distillation needs pairs with a teacher's distributions, without label smoothing"
        )
    taught.sort(key=by_length)
    batch = collate(taught, position_offset=rows.position_offset, device=model.device)
    logits = packed_logits(model, batch.tokens, rows.prefix, batch.keep).squeeze(0)
    count = sum(len(pair.target_ids) for pair in taught)
    token_ids = torch.cat([pair.token_ids for pair in taught]).to(model.device)
    chances = torch.cat([pair.chances for pair in taught]).to(model.device)
    return Loss(summed_divergence(logits[:count], token_ids, chances, divisor=count), count)


class DistillationMethod(PrefixMethod):
    """Trains the keys and values themselves, from `start`, on pairs that a teacher has taught.

    `start` maps modules to keys and values of the recipe's length.
    """

    def __init__(
        self, model: FrozenModel, recipe: Recipe, start: Mapping[str, KeyValues] | None = None
    ) -> None:
        super().__init__(model, recipe)
        self._start = start

    def initialise(self, between: Callable[[], None]) -> float | None:
        """See `Method`: the parameters are set to the start."""
        if self._start is None or not isinstance(self._networks, DirectKeyValues):
            return super().initialise(between)
        self._networks.copy_from(self._start)
        return None

    def _loss(self, rows: PrefixedRows) -> Loss:
        return divergence_of(self._model, rows)
