"""A foreign checkpoint, and which conversion it needs by its config and its tensors' names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.errors import InvalidPrefix
from app.prefix.foreign import START_BYTES, Reader, adapter_look, looks_like, names_look
from app.prefix.formats import adapterhub, authors, peft, prompt_tuning
from app.prefix.formats.prompt_tuning import RunEmbeddings
from app.prefix.formats.tensors import Tensors, read_tensors
from app.prefix.prefix import Prefix
from app.prefix.spec import BaseModelSpec


@dataclass(frozen=True)
class ForeignCheckpoint:
    """What a foreign file holds: tensors by name, and the fields of the config beside it.

    `reader` got it, and its errors say what to give that.
    """

    tensors: Tensors
    config: Mapping[str, Any] = field(default_factory=dict)
    reader: Reader = Reader.PUSH


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
    found = set(names)
    return _is_tgis(found) or any(
        name == peft.TENSOR or "control_trans" in name or "prefix_tunings." in name
        for name in found
    )


def read_upload(path: Path, config: str, limit: int) -> ForeignCheckpoint:
    """The checkpoint with its tensors at `path`, of at most `limit` bytes, and its config's text.

    Raises FileTooLarge, or InvalidPrefix if no prefix can be made of it.
    """
    fields = peft.parse_config(config)
    check_config(fields, Reader.SERVER)
    try:
        tensors = read_tensors(path, limit)
    except InvalidPrefix as error:
        with path.open("rb") as file:
            look = looks_like(file.read(START_BYTES))
        if look is None:
            raise
        raise InvalidPrefix(f"{error.message}. {look}") from error
    checkpoint = ForeignCheckpoint(tensors, fields, Reader.SERVER)
    check_importable(checkpoint)
    return checkpoint


def check_config(config: Mapping[str, Any], reader: Reader = Reader.PUSH) -> None:
    """InvalidPrefix if a config alone shows that its adapter cannot become a prefix."""
    kind = config.get("peft_type")
    if kind is not None and kind not in (*peft.KINDS, *prompt_tuning.PEFT_KINDS):
        raise InvalidPrefix(adapter_look(str(kind)[:40], reader))


def is_prompt_tuning(checkpoint: ForeignCheckpoint) -> bool:
    """Whether it holds embeddings, so that the base model itself is needed."""
    tensors = checkpoint.tensors
    of_peft = peft.TENSOR in tensors and checkpoint.config.get("peft_type") not in peft.KINDS
    return of_peft or _is_tgis(tensors)


def prompt_positions(checkpoint: ForeignCheckpoint, target: ImportTarget) -> int:
    """Positions of prompt tuning that the base model must read; raises what its import raises."""
    embeddings = prompt_tuning.checked_embeddings(
        checkpoint.tensors, checkpoint.config, target.spec, target.max_length
    )
    return embeddings.shape[0]


def check_importable(checkpoint: ForeignCheckpoint) -> None:
    """InvalidPrefix if a checkpoint cannot become a prefix of any base model."""
    tensors, config, reader = checkpoint.tensors, checkpoint.config, checkpoint.reader
    check_config(config, reader)
    hub = adapterhub.is_adapterhub(tensors)
    if peft.TENSOR in tensors and config.get("peft_type") is None:
        raise _no_config("a PEFT", reader)
    if hub and not isinstance(config.get("config"), dict):
        raise _no_config("an AdapterHub", reader)
    known = peft.TENSOR in tensors or _is_tgis(tensors)
    if not known and not authors.is_authors(tensors) and not hub:
        raise InvalidPrefix(
            names_look(tensors, reader)
            or "its tensors are those of no known format: it has no prompt_embeddings (PEFT), and "
            "none that is named as AdapterHub, TGIS or the authors' code name theirs"
        )


def import_checkpoint(checkpoint: ForeignCheckpoint, target: ImportTarget) -> Prefix:
    """The prefix that a checkpoint stands for.

    Raises InvalidPrefix (what it looks like, what is wrong), BaseModelMismatch, or InvalidRequest
    if the base model must be named.
    """
    check_importable(checkpoint)
    tensors, config = checkpoint.tensors, checkpoint.config
    spec, limit = target.spec, target.max_length
    if is_prompt_tuning(checkpoint):
        return prompt_tuning.import_prompt_tuning(
            tensors, config, spec, max_length=limit, run_embeddings=target.run_embeddings
        )
    if peft.TENSOR in tensors:
        return peft.import_peft(tensors, config, spec, limit)
    hub = adapterhub.is_adapterhub(tensors)
    read = adapterhub.import_adapterhub if hub else authors.import_authors
    return read(tensors, config, spec, family=target.family, max_length=limit)


def _no_config(whose: str, reader: Reader) -> InvalidPrefix:
    advice = {
        Reader.PUSH: "put it into the same folder",
        Reader.SERVER: "send its text, in one line, as the header x-adapter-config",
    }
    return InvalidPrefix(
        f"this looks like {whose} adapter without its adapter_config.json, which says what its "
        f"tensors mean; {advice[reader]}"
    )


def _is_tgis(names: Collection[str]) -> bool:
    return bool(names) and set(names) <= prompt_tuning.TGIS_NAMES
