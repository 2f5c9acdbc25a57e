"""Checkpoints: tensors and a JSON state in one safetensors file, which is replaced atomically."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from app.errors import InsufficientStorage, InvalidRequest
from app.model.frozen import FrozenModel
from app.prefix.prefix import Prefix

_STATE_KEY = "state"


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint: named tensors and a state of plain JSON values."""

    tensors: Mapping[str, torch.Tensor]
    state: Mapping[str, Any]

    def tensors_of(self, group: str) -> dict[str, torch.Tensor]:
        """The tensors that are named `GROUP.NAME`, by `NAME`."""
        return {
            name.removeprefix(f"{group}."): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(f"{group}.")
        }


def run_identity(model: FrozenModel, data: str, on: Prefix | None = None) -> str:
    """What a checkpoint's `identity` says: base model, data and frozen prefix of its run."""
    return f"{model.spec.fingerprint}:{data}{f':{on.digest}' if on else ''}"


def save_checkpoint(
    path: Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]
) -> None:
    """Write a checkpoint; a reader finds the old one or the new one, never a part.

    Raises InsufficientStorage if that fails; the old checkpoint then remains.
    """
    staged = path.with_name(path.name + ".tmp")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(plain, staged, metadata={_STATE_KEY: json.dumps(state, allow_nan=False)})
        with staged.open("rb") as file:
            os.fsync(file.fileno())
        staged.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            staged.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise InsufficientStorage(f"{path}: the checkpoint cannot be written: {reason}") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises InvalidRequest if the file is not one."""
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})[_STATE_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InvalidRequest(f"{path} is not a checkpoint of this program: {error}") from error
    return Checkpoint(tensors, state)


def checkpoint_of_run(path: Path, identity: str, recipe: Mapping[str, Any]) -> Checkpoint:
    """Read the checkpoint of a run. Raises InvalidRequest if it is another's or is damaged."""
    saved = load_checkpoint(path)
    if (saved.state.get("identity"), saved.state.get("recipe")) != (identity, recipe):
        raise InvalidRequest(
            f"{path} belongs to another run (base model, data or settings differ);"
            " remove it or start again without resuming"
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in saved.tensors.values()):
        raise InvalidRequest(
            f"{path} holds values that are not finite; remove it or start again without resuming"
        )
    return saved


def check_finite(
    what: str, value: float, *, step: int, lr: float | None, kept: Path | None
) -> None:
    """Raise InvalidRequest unless the value of step `step` is finite; `kept` is the checkpoint."""
    if math.isfinite(value):
        return
    state = "" if kept is None or not kept.exists() else f"; {kept} has the last good state"
    raise InvalidRequest(
        f"the {what} became {value} at step {step}{state}. Start again with a lower learning rate"
        f" than {lr}"
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer, name: str) -> dict[str, torch.Tensor]:
    """An optimiser's state as named tensors: `name.INDEX.KEY`."""
    return {
        f"{name}.{index}.{key}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, name: str, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Restore the state that `optimizer_tensors` has returned."""
    states: dict[int, dict[str, torch.Tensor]] = {}
    for full_name, tensor in tensors.items():
        if full_name.startswith(f"{name}."):
            index, key = full_name.removeprefix(f"{name}.").split(".", 1)
            states.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
