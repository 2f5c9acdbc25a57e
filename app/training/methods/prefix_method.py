"""The methods whose result is a prefix: keys and values in front of every input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn.functional import dropout

from app.evaluation.text_pairs import TokenPair
from app.model.frozen import FrozenModel
from app.prefix.prefix import KeyValues, Prefix
from app.training.initial import initial_keys_values, words_token_ids
from app.training.methods.direct import DirectKeyValues
from app.training.methods.embedding import VirtualTokens
from app.training.methods.method import State
from app.training.methods.names import PEFT_METHODS
from app.training.methods.peft_prefix import PeftKeyValues
from app.training.objective import Loss, PrefixedRows, losses_of, prefixed_rows
from app.training.recipe import HIDDEN, Recipe
from app.training.reparameterisation import Reparameterisations, fit_to, fit_to_tensor


class PrefixMethod:
    """Trains networks whose output is the prefix: `prefix`, `prefix-direct`, `embedding`, `peft`.

    The state is the prefix itself, as `MODULE.keys` and `MODULE.values`. The frozen prefix `on`, if
    given, stands before it. The loss of PEFT's methods is PEFT's, the mean over tokens.
    """

    def __init__(self, model: FrozenModel, recipe: Recipe, on: Prefix | None = None) -> None:
        self._model, self._recipe, self._on = model, recipe, on
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            networks = prefix_networks(model, recipe, on)
        self._networks = networks.to(model.device)

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The parameters of the networks."""
        return dict(self._networks.named_parameters())

    def initialise(self, between: Callable[[], None]) -> float | None:
        """See `Method`. The networks are fitted to the start; direct parameters are set to it."""
        recipe, networks = self._recipe, self._networks
        if not recipe.has_start:
            return None
        if isinstance(networks, VirtualTokens):
            ids = words_token_ids(self._model, recipe.initial_words or "", recipe.positions)
            words = torch.tensor(ids, device=self._model.device)
            return fit_to_tensor(
                networks, self._model.hf.get_input_embeddings()(words), between=between
            )
        goals = initial_keys_values(self._model, recipe, self._on)
        if isinstance(networks, DirectKeyValues):
            networks.copy_from(goals)
            return None
        if not isinstance(networks, Reparameterisations):
            return None
        return max(fit_to(networks[name], goal, between=between) for name, goal in goals.items())

    def base_loss(self, pairs: Sequence[TokenPair]) -> Loss:
        """See `Method`."""
        return self._loss(self._rows_behind({}, pairs))

    def loss(self, pairs: Sequence[TokenPair], *, in_step: bool = False) -> Loss:
        """See `Method`. In a step, `prefix_dropout` of the keys and values is dropped."""
        rows = self.rows(pairs) if in_step else self._rows_behind(self._networks(), pairs)
        return self._loss(rows)

    def rows(self, pairs: Sequence[TokenPair]) -> PrefixedRows:
        """The rows of a step, behind the present prefix; gradients flow into the parameters."""
        made, share = self._networks(), self._recipe.prefix_dropout
        if share:
            made = {
                name: KeyValues(dropout(part.keys, share), dropout(part.values, share))
                for name, part in made.items()
            }
        return self._rows_behind(made, pairs, self._recipe.label_smoothing)

    def loss_with(self, state: State, pairs: Sequence[TokenPair]) -> Loss:
        """See `Method`."""
        return self._loss(self._rows_behind(modules_of(state), pairs))

    @torch.no_grad()
    def state(self) -> dict[str, torch.Tensor]:
        """See `Method`."""
        return {
            f"{name}.{part}": getattr(made, part).detach().contiguous().clone()
            for name, made in self._networks().items()
            for part in ("keys", "values")
        }

    def _rows_behind(
        self,
        prefix: Mapping[str, KeyValues],
        pairs: Sequence[TokenPair],
        label_smoothing: float = 0.0,
    ) -> PrefixedRows:
        rows = prefixed_rows(
            self._model, prefix, pairs, on=self._on, label_smoothing=label_smoothing
        )
        if self._recipe.method in PEFT_METHODS:
            return replace(rows, divisor=sum(len(pair.target_ids) for pair in pairs))
        return rows

    def _loss(self, rows: PrefixedRows) -> Loss:
        return Loss(losses_of(self._model, [rows])[0], rows.divisor)


def modules_of(state: State) -> dict[str, KeyValues]:
    """The state of a `PrefixMethod` as modules of a prefix."""
    names = dict.fromkeys(name.partition(".")[0] for name in state)
    return {name: KeyValues(state[f"{name}.keys"], state[f"{name}.values"]) for name in names}


def prefix_networks(model: FrozenModel, recipe: Recipe, on: Prefix | None = None) -> nn.Module:
    """What a method trains, at its random start; the recipe is complete."""
    if recipe.method == "prefix-direct":
        return DirectKeyValues(model.spec.modules, recipe.modules, length=recipe.positions)
    hidden = recipe.hidden or HIDDEN
    if recipe.method == "embedding":
        return VirtualTokens(model, length=recipe.positions, hidden=hidden, on=on)
    if recipe.method in PEFT_METHODS:
        return PeftKeyValues(
            model.spec.decoder,
            length=recipe.positions,
            hidden=hidden,
            projection=recipe.method == "peft-projection",
        )
    return Reparameterisations(
        model.spec.modules,
        recipe.modules,
        length=recipe.positions,
        width=model.num_heads * model.spec.decoder.head_dim,
        hidden=hidden,
        depth=recipe.depth,
    )
