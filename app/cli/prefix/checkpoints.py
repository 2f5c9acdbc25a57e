"""Foreign checkpoints on this machine: found, read, and turned into prefixes for a server's model.

Pickles (`.bin`, `.pt`) are read here and nowhere else: by torch's loader that builds tensors only,
for a user who names the file. A server never does.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import BaseModelMismatch, FileTooLarge, InvalidPrefix, PolyprefixError

if TYPE_CHECKING:
    from app.prefix.formats.detection import ForeignCheckpoint
    from app.prefix.formats.prompt_tuning import RunEmbeddings
    from app.prefix.prefix import Prefix
    from app.prefix.spec import BaseModelSpec

_PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
_ADAPTER_FILES = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "adapter.safetensors",
    "pytorch_adapter.bin",
)
_TGIS_FILES = ("encoder.pt", "decoder.pt")
_ADAPTER_CONFIG, _MODEL_CONFIG = "adapter_config.json", "config.json"
_MODEL_FILES = ("model.safetensors", "pytorch_model.bin")
_MAX_CONFIG_BYTES = 1 << 20


def read_checkpoint(path: Path) -> ForeignCheckpoint | None:
    """The foreign checkpoint in a folder or a file; None if it is none that can be imported.

    Raises InvalidPrefix or FileTooLarge if it is one and cannot be read.
    """
    from app.prefix.formats.detection import ForeignCheckpoint, check_config, check_importable

    if path.is_dir():
        found = _in_folder(path)
    else:
        beside = (path.with_name(_ADAPTER_CONFIG), path.with_name(_MODEL_CONFIG))
        found = (path, next((config for config in beside if config.is_file()), None))
    if found is None:
        return None
    file, config_file = found
    if file.suffix not in _PICKLES and not _may_be_imported(file):
        return None
    config = {} if config_file is None else _read_config(config_file)
    try:
        check_config(config)
        checkpoint = ForeignCheckpoint(_read_tensors(file), config)
        check_importable(checkpoint)
    except InvalidPrefix as error:
        raise InvalidPrefix(f"{path}: {error.message}") from error
    return checkpoint


def convert(
    checkpoint: ForeignCheckpoint, info: Mapping[str, Any], base_model: str | None = None
) -> Prefix:
    """The prefix for the base model that a server's `/info` describes.

    `base_model`, a folder or hub id, is loaded for prompt tuning only; BaseModelMismatch if it is
    not the server's.
    """
    from app.prefix.formats.detection import ImportTarget, import_checkpoint, is_prompt_tuning

    spec, run = spec_of(info), None
    if base_model is not None and is_prompt_tuning(checkpoint):
        run = _runner(base_model, spec)
    try:
        target = ImportTarget(spec, str(info["family"]), int(info["max_prefix_length"]), run)
    except (KeyError, TypeError, ValueError) as error:
        raise _no_info() from error
    return import_checkpoint(checkpoint, target)


def _runner(base_model: str, spec: BaseModelSpec) -> RunEmbeddings:
    """What runs embeddings through the base model, which must be the server's."""
    from app.model.dense import keys_values_of_embeddings
    from app.model.load import load_model

    model = load_model(base_model, device="cpu", dtype="float32", packed=False)
    if model.spec.fingerprint != spec.fingerprint:
        raise BaseModelMismatch(
            f"{base_model} has fingerprint {model.spec.fingerprint[:12]}…; the server's "
            f"{spec.model_id} has {spec.fingerprint[:12]}…. Name the same base model"
        )
    return partial(keys_values_of_embeddings, model)


def spec_of(info: Mapping[str, Any]) -> BaseModelSpec:
    """What a server's `/info` says that prefixes must fit."""
    from app.prefix.spec import BaseModelSpec, ModuleShape

    try:
        return BaseModelSpec(
            model_id=str(info["model_id"]),
            fingerprint=str(info["base_fingerprint"]),
            modules={name: ModuleShape(**shape) for name, shape in info["modules"].items()},
            context_limit=int(info["context_limit"]),
            source_limit=info["source_limit"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _no_info() from error


def _no_info() -> PolyprefixError:
    return PolyprefixError("the server's /info does not say what its base model's prefixes are")


def _in_folder(folder: Path) -> tuple[Path, Path | None] | None:
    """The file of tensors and the config of a folder that may hold a checkpoint."""
    for config, names in ((_ADAPTER_CONFIG, _ADAPTER_FILES), (_MODEL_CONFIG, _MODEL_FILES)):
        if not (folder / config).is_file():
            continue
        if config == _MODEL_CONFIG and "preseqlen" not in _read_config(folder / config):
            return None  # a whole model
        for name in names:
            if (folder / name).is_file():
                return folder / name, folder / config
        raise InvalidPrefix(
            f"{folder} has {config} and no file of tensors; one of {', '.join(names)} must be "
            "beside it"
        )
    found = [folder / name for name in _TGIS_FILES if (folder / name).is_file()]
    return (found[0], None) if found else None


def _may_be_imported(file: Path) -> bool:
    """Whether the names in a safetensors header are those of a checkpoint that can be imported."""
    from app.prefix.formats.detection import is_importable
    from app.prefix.header import LENGTH_BYTES, header_length, parse_header

    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            raw = stream.read(header_length(stream.read(LENGTH_BYTES), size))
        return is_importable(parse_header(raw, size).tensors)
    except (OSError, InvalidPrefix):
        return False


def _read_config(file: Path) -> dict[str, Any]:
    from app.prefix.strict_json import parse_object

    with file.open("rb") as stream:
        data = stream.read(_MAX_CONFIG_BYTES + 1)
    if len(data) > _MAX_CONFIG_BYTES:
        raise FileTooLarge(f"{file} is larger than {_MAX_CONFIG_BYTES} bytes")
    try:
        return parse_object(data.decode(), floats=True)
    except ValueError as error:
        raise InvalidPrefix(f"{file} {error}") from None


def _read_tensors(file: Path) -> dict[str, Any]:
    from app.prefix.formats.tensors import check_tensors, read_tensors

    if file.suffix not in _PICKLES:
        # the reader refuses links, but the user may name one
        return dict(read_tensors(file.resolve()))
    return check_tensors(_load_pickle(file))


def _load_pickle(file: Path) -> dict[Any, Any]:
    """The tensors of a pickle, whose other contents are refused; InvalidPrefix."""
    import torch

    from app.prefix.formats.tensors import MAX_BYTES

    if not file.is_file():
        raise InvalidPrefix("the file does not exist")
    size = file.stat().st_size
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            size = max(size, sum(entry.file_size for entry in archive.infolist()))
    if size > MAX_BYTES:
        raise FileTooLarge(f"{file} holds {size} bytes; at most {MAX_BYTES} are taken")
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the loader raise anything
        raise InvalidPrefix(
            f"torch cannot read this file as tensors alone ({type(error).__name__}). Other "
            "objects, as trainers save them, are never built, since they can run code: save the "
            "tensors alone with `torch.save(model.state_dict(), FILE)`"
        ) from error
    if isinstance(loaded, torch.Tensor):
        return {file.stem: loaded}
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]  # a trainer's checkpoint holds other things beside it
    if not isinstance(loaded, dict):
        raise InvalidPrefix(f"it holds a {type(loaded).__name__}, not tensors by name")
    return loaded
