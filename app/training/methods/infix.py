"""Infix-tuning `[x; INFIX; y]` for models without an encoder (Li & Liang 2021, §7.3).

As in the authors' code, the model reads the input and then virtual tokens. Trained keys and values
are added to those of the virtual tokens in every layer; only the tokens after the infix see the
sums. The infix stands before the last token of the prompt, which starts the target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from app.evaluation.text_pairs import TokenPair
from app.model.frozen import FrozenModel
from app.prefix.prefix import KeyValues
from app.training.methods.method import State
from app.training.methods.padded import IGNORED_LABEL, padded, token_loss
from app.training.objective import Loss, loss_of
from app.training.recipe import HIDDEN, Recipe
from app.training.reparameterisation import Reparameterisation


class InfixPlan:
    """Causal attention of right-padded rows with an infix from `starts` [rows] on.

    Tokens after the infix see its keys and values plus `added` [layers, kv_heads, length,
    head_dim]; the infix itself sees its own.
    """

    def __init__(self, added: KeyValues, starts: torch.Tensor, dropout: float = 0.0) -> None:
        self._added, self._starts, self._dropout = added, starts, dropout
        self.layers: dict[int, KeyValues] = {}
        """What the tokens after the infix see of the first row, by layer."""

    def attend(
        self,
        role: str,  # noqa: ARG002
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """See `AttentionPlan`."""
        seen_keys = self._add(key, self._added.keys[layer])
        seen_values = self._add(value, self._added.values[layer])
        self.layers[layer] = KeyValues(seen_keys[0], seen_values[0])
        places = torch.arange(query.shape[2], device=query.device)
        after = places >= (self._starts + self._added.length)[:, None]  # [rows, tokens]
        inside = self._causal(query, key, value, scaling)
        behind = self._causal(query, seen_keys, seen_values, scaling)
        return torch.where(after[:, None, :, None], behind, inside).transpose(1, 2)

    def _add(self, tensor: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        """`tensor` [rows, heads, tokens, head_dim] plus `added` at each row's infix."""
        places = self._starts[:, None] + torch.arange(added.shape[1], device=tensor.device)
        rows, heads, _, head_dim = tensor.shape
        index = places[:, None, :, None].expand(rows, heads, -1, head_dim)
        return tensor.scatter_add(2, index, added.to(tensor.dtype).expand(rows, -1, -1, -1))

    def _causal(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        return scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=self._dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )


class InfixMethod:
    """Trains virtual tokens and what is added to their keys and values.

    The state holds `infix.tokens` [length, width], `infix.keys` and `infix.values`.
    """

    def __init__(self, model: FrozenModel, recipe: Recipe) -> None:
        self._model, self._recipe = model, recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            tokens, network = infix_networks(model, recipe)
        self._tokens, self._network = tokens.to(model.device), network.to(model.device)

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The virtual tokens and the network's parameters."""
        named = {f"network.{name}": value for name, value in self._network.named_parameters()}
        return {**dict(self._tokens.named_parameters(prefix="tokens")), **named}

    def initialise(self, between: Callable[[], None]) -> float | None:  # noqa: ARG002
        """See `Method`: an infix starts at random."""
        return None

    def base_loss(self, pairs: Sequence[TokenPair]) -> Loss:
        """See `Method`."""
        return loss_of(self._model, {}, pairs)

    def loss(self, pairs: Sequence[TokenPair], *, in_step: bool = False) -> Loss:
        """See `Method`. In a step, `prefix_dropout` of what is added is dropped."""
        recipe, made = self._recipe, self._network()
        smoothing = recipe.label_smoothing if in_step else 0.0
        if in_step and recipe.prefix_dropout:
            dropout = nn.functional.dropout
            share = recipe.prefix_dropout
            made = KeyValues(dropout(made.keys, share), dropout(made.values, share))
        return infix_loss(self._model, self._tokens.weight, made, pairs, label_smoothing=smoothing)

    def loss_with(self, state: State, pairs: Sequence[TokenPair]) -> Loss:
        """See `Method`."""
        added = KeyValues(state["infix.keys"], state["infix.values"])
        return infix_loss(self._model, state["infix.tokens"], added, pairs)

    @torch.no_grad()
    def state(self) -> dict[str, torch.Tensor]:
        """See `Method`."""
        made = self._network.result()
        tokens = self._tokens.weight.detach().clone()
        return {"infix.tokens": tokens, "infix.keys": made.keys, "infix.values": made.values}


def infix_networks(model: FrozenModel, recipe: Recipe) -> tuple[nn.Embedding, Reparameterisation]:
    """The virtual tokens and the network of what is added, at their random start."""
    width = int(model.hf.get_input_embeddings().weight.shape[1])
    tokens = nn.Embedding(recipe.positions, width)
    network = Reparameterisation(
        model.spec.decoder,
        length=recipe.positions,
        width=model.num_heads * model.spec.decoder.head_dim,
        hidden=recipe.hidden or HIDDEN,
        depth=recipe.depth,
    )
    return tokens, network


def infix_loss(
    model: FrozenModel,
    tokens: torch.Tensor,
    added: KeyValues,
    pairs: Sequence[TokenPair],
    *,
    label_smoothing: float = 0.0,
) -> Loss:
    """The loss of `pairs` with an infix: summed over a sentence's tokens, a mean over sentences."""
    blank = [0] * len(tokens)
    rows, labels, starts = [], [], []
    for pair in pairs:
        before = [*pair.prompt_ids[:-1], *blank]
        rows.append(torch.tensor([*before, pair.prompt_ids[-1], *pair.target_ids[:-1]]))
        labels.append(torch.tensor([IGNORED_LABEL] * len(before) + list(pair.target_ids)))
        starts.append(len(pair.prompt_ids) - 1)
    where = torch.tensor(starts, device=model.device)
    plan = InfixPlan(added, where, model_dropout(model))
    logits = _run(model, padded(rows, 0).to(model.device), tokens, where, plan, keep=0)
    loss = token_loss(logits, padded(labels, IGNORED_LABEL), len(pairs), label_smoothing)
    return Loss(loss, len(pairs))


def model_dropout(model: FrozenModel) -> float:
    """The share of attention weights that GPT-2 drops while it trains."""
    config = model.hf.config
    share = getattr(config, "attn_pdrop", getattr(config, "attention_dropout", 0.0))
    return float(share) if model.hf.training else 0.0


@torch.no_grad()
def keys_values_with_infix(
    model: FrozenModel, state: State, prompt_ids: Sequence[int]
) -> KeyValues:
    """What the last token of a prompt and the target see: the rest of the prompt and the infix.

    [layers, kv_heads, len(prompt_ids) - 1 + length, head_dim] each.
    """
    tokens = state["infix.tokens"].to(model.device)
    added = KeyValues(state["infix.keys"].to(model.device), state["infix.values"].to(model.device))
    ids = torch.tensor([[*prompt_ids[:-1], *[0] * len(tokens)]], device=model.device)
    starts = torch.tensor([len(prompt_ids) - 1], device=model.device)
    plan = InfixPlan(added, starts)
    _run(model, ids, tokens, starts, plan, keep=1)
    layers = [plan.layers[layer] for layer in range(len(plan.layers))]
    return KeyValues(
        torch.stack([seen.keys for seen in layers]), torch.stack([seen.values for seen in layers])
    )


def _run(
    model: FrozenModel,
    ids: torch.Tensor,
    tokens: torch.Tensor,
    starts: torch.Tensor,
    plan: InfixPlan,
    *,
    keep: int,
) -> torch.Tensor:
    """Logits of rows [rows, tokens] whose embeddings from `starts` on are `tokens`."""
    embedded = model.hf.get_input_embeddings()(ids)
    places = starts[:, None] + torch.arange(len(tokens), device=ids.device)
    index = places[:, :, None].expand(-1, -1, tokens.shape[1])
    embedded = embedded.scatter(1, index, tokens.to(embedded.dtype).expand(len(ids), -1, -1))
    positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    output = model.hf(
        inputs_embeds=embedded,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=keep,
        plan=plan,
    )
    logits: torch.Tensor = output.logits
    return logits
