"""What the trainer needs of a method: trained parameters, their loss, and the state to keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from app.evaluation.text_pairs import TokenPair
from app.training.objective import Loss

State = Mapping[str, torch.Tensor]
"""What a method has learned, by name: all that its file holds."""


class Method(Protocol):
    """One way to adapt a base model. `parameters` are what the optimiser changes, by name."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]: ...

    def initialise(self, between: Callable[[], None]) -> float | None:
        """Start from the recipe's words or file, if it names one; the squared error that is left.

        None if the recipe names none, or the start is exact. `between` is called now and then.
        """

    def base_loss(self, pairs: Sequence[TokenPair]) -> Loss:
        """The loss without what is trained: of the base model alone, or with the frozen prefix.

        Valid before the first step.
        """

    def loss(self, pairs: Sequence[TokenPair], *, in_step: bool = False) -> Loss:
        """The loss with gradients into the parameters; `in_step` turns dropout and smoothing on."""

    def loss_with(self, state: State, pairs: Sequence[TokenPair]) -> Loss:
        """The loss with a state that `state` has returned."""

    def state(self) -> dict[str, torch.Tensor]:
        """The present state: detached copies."""
