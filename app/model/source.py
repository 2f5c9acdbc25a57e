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
    path = Path(name_or_path)
    if path.is_dir():
        problem = _problem_of(path)
    elif path.exists():
        problem = "it is a file; name the folder with config.json and model.safetensors"
    elif _is_path(name_or_path):
        problem = "the folder does not exist"
    else:
        return
    if problem is not None:
        raise UnsupportedModel(f"base model {name_or_path!r} cannot be loaded: {problem}")


def _is_path(text: str) -> bool:
    """Whether it can't be the id of a model, which is `name` or `owner/name`."""
    parts = text.split("/")
    return len(parts) > 2 or parts[0] in {"", ".", "..", "~"} or parts[-1] == "" or "\\" in text


def _problem_of(folder: Path) -> str | None:
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            return "the folder holds an adapter, not a base model"
        return "the folder has no config.json"
    if next(folder.glob("*.safetensors"), None) is not None:
        return None
    found = (file for pattern in _OTHER_WEIGHTS for file in sorted(folder.glob(pattern)))
    other = next((file.name for file in found if file.name not in _NO_WEIGHTS), None)
    if other is None:
        return "the folder has no weights (model.safetensors)"
    return (
        f"its weights are in {other} and not in model.safetensors. Only safetensors are read, as"
        " pickles can run code. If you trust the folder, convert it once, where transformers is"
        f" installed: {_CONVERT.replace('FOLDER', str(folder))}"
    )
