"""Turn trained keys and values into a prefix file, and put it into a store."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from app.model.frozen import FrozenModel
from app.prefix.codec import encode
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from app.registry.shipped.manifest import add_to_manifest
from app.registry.types import VersionInfo

_FILE_DTYPE = torch.float16


def as_prefix(
    trained: Mapping[str, KeyValues],
    model: FrozenModel,
    *,
    position_offset: int,
    template: str,
    decoding: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> Prefix:
    """A prefix that fits only `model`; `trained` maps modules to keys and values.

    It is stored in half precision, or in single precision if a value is too large for that.
    """
    parts = [part for made in trained.values() for part in (made.keys, made.values)]
    fits = all(bool(torch.isfinite(part.to(_FILE_DTYPE)).all()) for part in parts)
    dtype = _FILE_DTYPE if fits else torch.float32
    modules = {
        name: KeyValues(
            made.keys.detach().cpu().to(dtype).contiguous(),
            made.values.detach().cpu().to(dtype).contiguous(),
        )
        for name, made in trained.items()
    }
    metadata = PrefixMetadata(
        position_offset=position_offset,
        base_model=model.spec.model_id,
        base_fingerprint=model.spec.fingerprint,
        input_template=template,
        decoding=decoding,
        provenance=provenance,
    )
    return Prefix(modules, metadata)


def write_prefix(prefix: Prefix, path: Path) -> None:
    """Write the prefix as a file in the format `polyprefix/1`, completely or not at all.

    Raises OSError if that fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = encode(prefix)
    if path.exists() and not path.is_file():
        path.write_bytes(data)  # a device or a pipe is not replaced
        return
    staged = path.with_name(path.name + ".tmp")
    try:
        staged.write_bytes(data)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def describe(prefix: Prefix) -> VersionInfo:
    """The facts about a prefix that the registry stores."""
    metadata = prefix.metadata
    return VersionInfo(
        digest=prefix.digest,
        length=prefix.length,
        position_offset=metadata.position_offset,
        dtype=str(prefix.decoder.keys.dtype).removeprefix("torch."),
        nbytes=prefix.nbytes,
        base_model=metadata.base_model,
        base_fingerprint=metadata.base_fingerprint,
        input_template=metadata.input_template,
        decoding=metadata.decoding,
        provenance=metadata.provenance,
        lengths={name: part.length for name, part in prefix.modules.items()},
    )


def add_to_store(prefix: Prefix, store: Path, name: str, *, alias: str | None = None) -> None:
    """Add the prefix to a store's shipped prefixes, which servers import at start."""
    info = describe(prefix)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prefix.safetensors"
        write_prefix(prefix, path)
        add_to_manifest(store, name, info, path, alias=alias)
