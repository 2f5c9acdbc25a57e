"""The methods that train weights inside the model: fine-tuning, adapters and LoRA."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from app.evaluation.text_pairs import TokenPair
from app.model.frozen import FrozenModel
from app.training.methods.adapter import adapter_size, install_adapters, transformer_layers
from app.training.methods.lora import install_lora, lora_targets
from app.training.methods.method import State
from app.training.methods.padded import padded_loss
from app.training.objective import Loss
from app.training.recipe import Recipe

_TOP_LAYERS = 2


class WeightMethod:
    """Trains weights of `model` in place: all, those of the top layers, or added ones.

    The state holds the trained weights by name. With dtype `bf16` the products are bfloat16 and
    the weights stay fp32.
    """

    def __init__(self, model: FrozenModel, recipe: Recipe) -> None:
        self._model, self._recipe = model, recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self._parameters = install(model, recipe)
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The trained weights."""
        return self._parameters

    def initialise(self, between: Callable[[], None]) -> float | None:  # noqa: ARG002
        """See `Method`: these methods start from the base model."""
        return None

    def base_loss(self, pairs: Sequence[TokenPair]) -> Loss:
        """See `Method`. Before the first step, the changed model is the base model."""
        return self.loss(pairs)

    def loss(self, pairs: Sequence[TokenPair], *, in_step: bool = False) -> Loss:
        """See `Method`."""
        smoothing = self._recipe.label_smoothing if in_step else 0.0
        device = self._model.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._recipe.dtype == "bf16"):
            return padded_loss(self._model, pairs, label_smoothing=smoothing)

    def loss_with(self, state: State, pairs: Sequence[TokenPair]) -> Loss:
        """See `Method`."""
        with self._holding(state):
            return self.loss(pairs)

    def state(self) -> dict[str, torch.Tensor]:
        """See `Method`."""
        return {name: value.detach().clone() for name, value in self._parameters.items()}

    @contextmanager
    def _holding(self, state: State) -> Iterator[None]:
        present = self.state()
        copy_state(self._parameters, state)
        try:
            yield
        finally:
            copy_state(self._parameters, present)


def install(model: FrozenModel, recipe: Recipe) -> dict[str, nn.Parameter]:
    """The parameters that the recipe's method trains, by name; adds what the model lacks."""
    if recipe.method == "adapter":
        return install_adapters(model, adapter_size(model, recipe.adapter_share))
    if recipe.method == "lora":
        return install_lora(
            model,
            rank=recipe.lora_rank,
            alpha=recipe.lora_alpha,
            targets=recipe.lora_targets or lora_targets(model),
        )
    if recipe.method == "finetune":
        return dict(model.hf.named_parameters())
    top = {
        id(parameter)
        for layer in transformer_layers(model)[-_TOP_LAYERS:]
        for parameter in layer.parameters()
    }
    return {name: p for name, p in model.hf.named_parameters() if id(p) in top}


@torch.no_grad()
def copy_state(parameters: Mapping[str, nn.Parameter], state: State) -> None:
    """Give the parameters the values of a state with the same names."""
    for name, parameter in parameters.items():
        parameter.copy_(state[name])
