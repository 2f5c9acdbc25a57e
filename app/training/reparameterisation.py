"""The authors' reparameterisation of a prefix: Embedding → Linear → Tanh → Linear.

With depth 2 another Linear → Tanh of the same width comes between (their `deep_param`).

Training the keys and values directly is unstable (Li & Liang 2021, §4.3). This network is trained
instead; its final output is the prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from app.prefix.prefix import KeyValues
from app.prefix.spec import ModuleShape
from app.training.methods.embedding import VirtualTokens

FIT_STEPS = 500
FIT_LR = 1e-4
_BETWEEN_STEPS = 10


class Reparameterisation(nn.Module):
    """Makes the keys and values of a prefix from `length` embeddings of the model's `width`.

    The output at one position has the shape [2 * layers, kv_heads, head_dim]: slice 2l is the key
    of layer l, slice 2l + 1 its value. Weights start with torch's default initialisation.
    """

    def __init__(
        self, shape: ModuleShape, *, length: int, width: int, hidden: int, depth: int = 1
    ) -> None:
        super().__init__()
        self._shape = shape
        self.embedding = nn.Embedding(length, width)
        deeper = [part for _ in range(depth - 1) for part in (nn.Linear(hidden, hidden), nn.Tanh())]
        self.network = nn.Sequential(
            nn.Linear(width, hidden),
            nn.Tanh(),
            *deeper,
            nn.Linear(hidden, 2 * shape.layers * shape.kv_heads * shape.head_dim),
        )

    def forward(self) -> KeyValues:
        """Keys and values, [layers, kv_heads, length, head_dim] each, with gradients."""
        shape = self._shape
        output = self.network(self.embedding.weight)  # [P, 2 * L * H * D]
        slices = output.view(-1, 2 * shape.layers, shape.kv_heads, shape.head_dim)
        slices = slices.permute(1, 2, 0, 3)  # [2 * L, H, P, D]
        return KeyValues(slices[0::2], slices[1::2])

    def result(self) -> KeyValues:
        """The present keys and values, detached and contiguous."""
        with torch.no_grad():
            made = self()
        return KeyValues(made.keys.contiguous(), made.values.contiguous())


class Reparameterisations(nn.Module):
    """One network for each module of a prefix, trained together: BART has three.

    They share no weights, like the authors' `control_trans`, `control_trans_enc`, `control_trans2`.
    """

    def __init__(
        self,
        shapes: Mapping[str, ModuleShape],
        modules: Iterable[str],
        *,
        length: int,
        width: int,
        hidden: int,
        depth: int = 1,
    ) -> None:
        super().__init__()
        self._networks = {
            name: Reparameterisation(
                shapes[name], length=length, width=width, hidden=hidden, depth=depth
            )
            for name in modules
        }
        for name, network in self._networks.items():
            self.add_module(name, network)

    def __getitem__(self, module: str) -> Reparameterisation:
        return self._networks[module]

    def forward(self) -> dict[str, KeyValues]:
        """Keys and values of every module, with gradients."""
        return {name: network() for name, network in self._networks.items()}

    def result(self) -> dict[str, KeyValues]:
        """The present prefix, detached and contiguous."""
        return {name: network.result() for name, network in self._networks.items()}


def fit_to(
    reparameterisation: Reparameterisation,
    goal: KeyValues,
    *,
    steps: int = FIT_STEPS,
    lr: float = FIT_LR,
    between: Callable[[], None] = lambda: None,
) -> float:
    """Fit the output to `goal` by Adam on the squared error; return the final error.

    Only the network is trained, not the embeddings, as in the authors' low-data initialisation.
    `between` is called after every few steps.
    """
    keys, values = goal.keys.detach().float(), goal.values.detach().float()

    def error() -> torch.Tensor:
        return _squared_error(reparameterisation(), keys, values)

    return _fit(reparameterisation, reparameterisation.network, error, steps, lr, between)


def fit_to_tensor(
    tokens: VirtualTokens,
    goal: torch.Tensor,
    *,
    steps: int = FIT_STEPS,
    lr: float = FIT_LR,
    between: Callable[[], None] = lambda: None,
) -> float:
    """As `fit_to`, for virtual tokens and the embeddings [length, width] of real ones."""
    wanted = goal.detach().float()

    def error() -> torch.Tensor:
        return (tokens.embeddings() - wanted).square().mean()

    return _fit(tokens, tokens.network, error, steps, lr, between)


def _fit(
    whole: nn.Module,
    network: nn.Module,
    error: Callable[[], torch.Tensor],
    steps: int,
    lr: float,
    between: Callable[[], None],
) -> float:
    """Lower `error` by training the `network` of `whole`; the final error."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    for step in range(steps):
        if step % _BETWEEN_STEPS == 0:
            between()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(error())
        optimizer.step()
    whole.zero_grad(set_to_none=True)
    with torch.no_grad():
        return float(error())


def _squared_error(made: KeyValues, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return ((made.keys - keys).square().mean() + (made.values - values).square().mean()) / 2
