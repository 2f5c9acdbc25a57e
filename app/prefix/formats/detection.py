"""A foreign checkpoint, and which conversion it needs by its config and its tensors' names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from app.errors import InvalidPrefix
from app.prefix.foreign import adapter_look, names_look
from app.prefix.formats import peft
from app.prefix.formats.tensors import Tensors
from app.prefix.prefix import KeyValues, Prefix
from app.prefix.spec import BaseModelSpec

RunEmbeddings = Callable[[torch.Tensor], KeyValues]
"""The base model's keys and values for input embeddings [positions, hidden] from position 0."""


@dataclass(frozen=True)
class ForeignCheckpoint:
    """What a foreign file holds: tensors by name, and the fields of the config beside it."""

    tensors: Tensors
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ImportTarget:
    """The base model that a checkpoint becomes a prefix of.

    `family` is transformers' name of its type (`gpt2`, `bart`, …); `max_length` bounds the
    positions; `run_embeddings` is needed for prompt tuning only.
    """

    spec: BaseModelSpec
    family: str
    max_length: int
    run_embeddings: RunEmbeddings | None = None


def is_importable(names: Iterable[str]) -> bool:
    """Whether tensors of these names may belong to a checkpoint that can be imported."""
    return any(name == peft.TENSOR for name in names)


def check_config(config: Mapping[str, Any]) -> None:
    """InvalidPrefix if a config alone shows that its adapter cannot become a prefix."""
    kind = config.get("peft_type")
    if kind is not None and kind not in peft.KINDS:
        raise InvalidPrefix(adapter_look(str(kind)))


def check_importable(checkpoint: ForeignCheckpoint) -> None:
    """InvalidPrefix if a checkpoint cannot become a prefix of any base model."""
    check_config(checkpoint.config)
    if peft.TENSOR in checkpoint.tensors:
        if "peft_type" not in checkpoint.config:
            raise InvalidPrefix(
                "this looks like a PEFT adapter without its adapter_config.json, which says what "
                "the tensor means; put it into the same folder"
            )
        return
    raise InvalidPrefix(
        names_look(checkpoint.tensors) or "its tensors are those of no known format"
    )


def import_checkpoint(checkpoint: ForeignCheckpoint, target: ImportTarget) -> Prefix:
    """The prefix that a checkpoint stands for.

    Raises InvalidPrefix (what it looks like, what is wrong) or BaseModelMismatch.
    """
    check_importable(checkpoint)
    tensors, config = checkpoint.tensors, checkpoint.config
    return peft.import_peft(tensors, config, target.spec, target.max_length)
