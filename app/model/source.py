"""Where a base model is to come from, checked by names of files before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from app.errors import UnsupportedModel

_CONVERT = (
    'python -c "from transformers import AutoModelForCausalLM as M;'
    " M.from_pretrained('FOLDER').save_pretrained('FOLDER')\""
)
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf")
_NO_WEIGHTS = {"training_args.bin", "optimizer.pt", "scheduler.pt"}


def check_source(name_or_path: str) -> None:
    """UnsupportedModel if this is a folder that is not there, or one that holds no model for us.

    What may be the id of a model on a hub is let through.
    """
    check_place(name_or_path)
    check_weights(name_or_path)


def check_place(name_or_path: str) -> None:
    """UnsupportedModel if this is a folder that is not there, or one without a configuration."""
    path = Path(name_or_path)
    if (path / "config.json").is_file():
        return
    if (path / "adapter_config.json").is_file():
        raise _refusal(name_or_path, "the folder holds an adapter, not a base model")
    if path.is_dir():
        raise _refusal(name_or_path, "the folder has no config.json")
    if path.exists():
        raise _refusal(
            name_or_path, "it is a file; name the folder with config.json and model.safetensors"
        )
    if _is_path(name_or_path):
        raise _refusal(name_or_path, "the folder does not exist")


def check_weights(name_or_path: str) -> None:
    """UnsupportedModel if this is a folder whose weights are not in safetensors."""
    folder = Path(name_or_path)
    if not folder.is_dir() or next(folder.glob("*.safetensors"), None) is not None:
        return
    found = (file for pattern in _OTHER_WEIGHTS for file in sorted(folder.glob(pattern)))
    other = next((file.name for file in found if file.name not in _NO_WEIGHTS), None)
    if other is None:
        raise _refusal(name_or_path, "the folder has no weights (model.safetensors)")
    raise _refusal(
        name_or_path,
        f"its weights are in {other} and not in model.safetensors. Only safetensors are read, as"
        " pickles can run code. If you trust the folder, convert it once, where transformers is"
        f" installed: {_CONVERT.replace('FOLDER', str(folder))}",
    )


def _refusal(name_or_path: str, problem: str) -> UnsupportedModel:
    return UnsupportedModel(f"base model {name_or_path!r} cannot be loaded: {problem}")


def _is_path(text: str) -> bool:
    """Whether it can't be the id of a model, which is `name` or `owner/name`."""
    parts = text.split("/")
    return len(parts) > 2 or parts[0] in {"", ".", "..", "~"} or parts[-1] == "" or "\\" in text
