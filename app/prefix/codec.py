"""Prefix files: safetensors of format `polyprefix/1`, written and read with every check.

A file is not trusted, neither when it is uploaded nor when it comes back from a store: our own
parser sees it before the library does, and the values are checked before and after the cast to
the serving dtype.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from app.errors import BaseModelMismatch, FileTooLarge, InvalidPrefix, PrefixOverflows
from app.prefix.foreign import START_BYTES, looks_like
from app.prefix.header import LENGTH_BYTES, Header, header_length, parse_header
from app.prefix.metadata import parse_metadata, render_metadata
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from app.prefix.spec import MODULES, BaseModelSpec, ModuleShape

_DTYPES = {"F16", "BF16", "F32"}
_PARTS = ("keys", "values")
_NOT_VALID = "not a valid prefix file"


def encode(prefix: Prefix) -> bytes:
    """The file of a prefix."""
    tensors = {
        f"{name}.{part}": getattr(module, part).detach().cpu().contiguous()
        for name, module in prefix.modules.items()
        for part in _PARTS
    }
    return save_tensors(tensors, metadata=render_metadata(prefix.metadata))


def max_file_bytes(spec: BaseModelSpec, max_length: int) -> int:
    """Bytes that a prefix file for this base model can have at most."""
    values = sum(
        2 * shape.layers * shape.kv_heads * max_length * shape.head_dim
        for shape in spec.modules.values()
    )
    return 4 * values + 64 * 1024 + LENGTH_BYTES


def decode(
    path: Path,
    spec: BaseModelSpec,
    dtype: torch.dtype,
    *,
    max_length: int,
    expect_digest: str | None = None,
) -> Prefix:
    """Read and check a prefix file for base model `spec`, to be served in `dtype`.

    `max_length` bounds the positions of each module; `expect_digest` is the version that a store
    says this is. Returns host tensors in the file's own dtype. Raises FileTooLarge, InvalidPrefix
    (which rule, which tensor) or BaseModelMismatch.
    """
    limit = max_file_bytes(spec, max_length)
    # Path.open would follow a symlink planted in a store
    with (
        os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file,
        _named_by_its_look(file),
    ):
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise FileTooLarge(f"a prefix file for this model has at most {limit} bytes")
        first = file.read(LENGTH_BYTES)
        raw = file.read(header_length(first, size))
        header = parse_header(raw, size)
        metadata = _check_header(header, spec, max_length)
        data = first + raw + file.read(limit)
    prefix = Prefix(_load_modules(data, size), metadata)
    _check_values(prefix, dtype)
    if expect_digest is not None and prefix.digest != expect_digest:
        _refuse(f"its content is version {prefix.digest[:12]}, not {expect_digest[:12]}")
    return prefix


def spec_of_file(path: Path) -> BaseModelSpec:
    """The base model that a prefix file is for, by the file alone: its own shapes and fingerprint.

    Positions are not limited. Raises InvalidPrefix.
    """
    with path.open("rb") as file, _named_by_its_look(file):
        size = os.fstat(file.fileno()).st_size
        header = parse_header(file.read(header_length(file.read(LENGTH_BYTES), size)), size)
    shapes = {
        module: ModuleShape(entry.shape[0], entry.shape[1], entry.shape[3])
        for module in MODULES
        if (entry := header.tensors.get(f"{module}.keys")) and len(entry.shape) == 4
    }
    if "decoder" not in shapes:
        _refuse("it has no tensor decoder.keys of four dimensions")
    metadata = header.metadata
    return BaseModelSpec(
        model_id=metadata.get("base_model", "unknown"),
        fingerprint=metadata.get("base_fingerprint", ""),
        modules=shapes,
        context_limit=size,
    )


@contextmanager
def _named_by_its_look(file: BinaryIO) -> Iterator[None]:
    """Adds to a refusal inside the block what kind of file this is, if that is known."""
    try:
        yield
    except (FileTooLarge, InvalidPrefix) as error:
        file.seek(0)
        look = looks_like(file.read(START_BYTES))
        if look is None:
            raise
        raise type(error)(f"{error.message}. {look}") from error


def _check_header(header: Header, spec: BaseModelSpec, max_length: int) -> PrefixMetadata:
    lengths = _check_tensors(header, spec, max_length)
    metadata = parse_metadata(header.metadata, lengths["decoder"])
    fingerprint = metadata.base_fingerprint
    if fingerprint is not None and fingerprint != spec.fingerprint:
        raise BaseModelMismatch(
            f"this prefix was trained on base model {ascii(metadata.base_model)} with fingerprint "
            f"{fingerprint[:12]}…; this server has {spec.model_id!r} with {spec.fingerprint[:12]}…"
        )
    return metadata


def _check_tensors(header: Header, spec: BaseModelSpec, max_length: int) -> dict[str, int]:
    """Names, dtypes and exact shapes; returns the length of each module."""
    known = [f"{module}.{part}" for module in spec.modules for part in _PARTS]
    for name in header.tensors:
        if name not in known:
            _refuse(f"unexpected tensor {ascii(name[:60])}; this model takes {', '.join(known)}")
    present = [
        module
        for module in MODULES
        if module == "decoder" or any(f"{module}.{part}" in header.tensors for part in _PARTS)
    ]
    for module in present:
        for part in _PARTS:
            if f"{module}.{part}" not in header.tensors:
                _refuse(f"tensor {module}.{part} is missing")
    if len({entry.dtype for entry in header.tensors.values()}) > 1:
        _refuse("the tensors differ in dtype")
    return {module: _check_shapes(header, spec, module, max_length) for module in present}


def _check_shapes(header: Header, spec: BaseModelSpec, module: str, max_length: int) -> int:
    shape = spec.modules[module]
    keys = header.tensors[f"{module}.keys"].shape
    length = keys[2] if len(keys) == 4 else 0
    expected = (shape.layers, shape.kv_heads, length, shape.head_dim)
    for part in _PARTS:
        name = f"{module}.{part}"
        entry = header.tensors[name]
        if entry.dtype not in _DTYPES:
            _refuse(f"tensor {name} has dtype {entry.dtype}; F16, BF16 and F32 are taken")
        if entry.shape != expected:
            _refuse(
                f"tensor {name} has shape {list(entry.shape)}; this model takes "
                f"[{shape.layers}, {shape.kv_heads}, length, {shape.head_dim}] with the same "
                "length in keys and values"
            )
    if not 1 <= length <= max_length:
        _refuse(f"module {module} has {length} positions; 1 to {max_length} are taken")
    return length


def _load_modules(data: bytes, size: int) -> Mapping[str, KeyValues]:
    tensors = load_checked(data, size)
    names = {name.partition(".")[0] for name in tensors}
    return {
        module: KeyValues(tensors[f"{module}.keys"], tensors[f"{module}.values"])
        for module in MODULES
        if module in names
    }


def load_checked(data: bytes, size: int) -> dict[str, torch.Tensor]:
    """The tensors in the bytes of a file whose header has been checked and said `size`.

    Whatever the library raises is the file's fault: InvalidPrefix.
    """
    if len(data) != size:
        _refuse(f"the file changed while it was read ({len(data)} of {size} bytes)")
    try:
        return load_tensors(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise InvalidPrefix(
            f"{_NOT_VALID}: the safetensors library refuses it ({type(error).__name__})"
        ) from error


def _check_values(prefix: Prefix, dtype: torch.dtype) -> None:
    """Every value finite, as stored and in the serving dtype."""
    for name, module in prefix.modules.items():
        for part in _PARTS:
            tensor = getattr(module, part)
            if not bool(torch.isfinite(tensor).all()):
                _refuse(f"tensor {name}.{part} holds a value that is NaN or infinite")
            if tensor.dtype != dtype and not bool(torch.isfinite(tensor.to(dtype)).all()):
                served = str(dtype).removeprefix("torch.")
                raise PrefixOverflows(
                    f"{_NOT_VALID}: tensor {name}.{part} holds a value that overflows in {served}"
                )


def _refuse(reason: str) -> NoReturn:
    raise InvalidPrefix(f"{_NOT_VALID}: {reason}")
