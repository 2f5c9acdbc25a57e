"""A prefix made of real words without training: the keys and values that the model gives them."""

from __future__ import annotations

from collections.abc import Sequence

from app.model.dense import keys_values_of
from app.model.frozen import FrozenModel
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata


def words_prefix(model: FrozenModel, token_ids: Sequence[int], metadata: PrefixMetadata) -> Prefix:
    """The keys and values of `token_ids` at positions 0, 1, …, in the serving dtype, on the host.

    `metadata` must shift the following tokens by the number of `token_ids`.
    """
    made = keys_values_of(model, token_ids)
    modules = {"decoder": KeyValues(made.keys.cpu(), made.values.cpu())}
    return Prefix(modules, metadata)
