"""What a file that is no prefix file looks like, by its first bytes, so that an error can say so.

Nothing here accepts or refuses a file: `codec` does, and asks here only when it has refused one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

START_BYTES = 64 * 1024
"""As much of a file as is looked at."""


class Reader(Enum):
    """Who refuses a file: a server, or `polyprefix prefix push`, which takes more."""

    SERVER = "server"
    PUSH = "push"


_TAKEN = {
    Reader.SERVER: (
        "What is taken: a safetensors file of format polyprefix/1, as `polyprefix train` writes "
        "it, or an adapter with its config (x-adapter-config)"
    ),
    Reader.PUSH: (
        "What is taken: files of format polyprefix/1, as `polyprefix train` writes them, and "
        "prefix tuning and prompt tuning of PEFT, AdapterHub, TGIS and the authors' code "
        "(prefixes/README.md)"
    ),
}
_MODEL = "a base model is served with `polyprefix serve --model FOLDER`"
_UNPACK = "unpack it and send the file that is in it"
_PICKLE = (
    "a server never reads pickles, since they can run code; save its tensors as safetensors, or "
    "give it to `polyprefix prefix push`"
)
_CONVERT = (
    "push its folder with `polyprefix prefix push`, or upload its tensors with its config, in "
    "one line, as the header x-adapter-config"
)
_WITHIN_PUSH = {
    _PICKLE: (
        "pickles are read only if they are named .bin, .pt, .pth or .ckpt and hold tensors alone; "
        "save its tensors as safetensors"
    ),
    _CONVERT: "push its folder, with its config beside its tensors",
}
"""What to do instead where `polyprefix prefix push` itself says it."""

_ONE_TASK = "train PEFT's prompt tuning or prefix tuning on one task"
_LAYERS = "it changes the model's layers, which a prefix does not do; train a prefix instead"

_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (b"GGUF", "a whole model in the GGUF format of llama.cpp", _MODEL),
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the file itself with `git lfs pull`"),
    (b"/annex/objects/", "a git-annex pointer", "fetch the file itself with `git annex get`"),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x89HDF", "an HDF5 file, as Keras writes it", "save its tensors as safetensors"),
    (b"\x93NUMPY", "a NumPy array", "save its tensors as safetensors"),
)
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)
_NAME = re.compile(rb'"([^"\\]{1,300})"\s{0,8}:\s{0,8}\{\s{0,8}"(?:dtype|shape|data_offsets)"')
_PICKLED = re.compile(rb"\x80[\x02-\x05]")

_PEFT_TYPES = {
    "PREFIX_TUNING": ("a PEFT prefix-tuning adapter", _CONVERT),
    "CARTRIDGE": ("a PEFT cartridge", _CONVERT),
    "PROMPT_TUNING": ("a PEFT prompt-tuning adapter", _CONVERT),
    "P_TUNING": ("a PEFT P-tuning adapter", _CONVERT),
    "MULTITASK_PROMPT_TUNING": (
        "a PEFT adapter of multitask prompt tuning (MULTITASK_PROMPT_TUNING)",
        f"it holds a prompt that is changed for each of several tasks, not one prompt; {_ONE_TASK}",
    ),
    "CPT": (
        "a PEFT adapter of context-aware prompt tuning (CPT)",
        "its prompt is the embeddings of a text plus trained changes, which is not converted; "
        "train PEFT's prompt tuning or prefix tuning",
    ),
    "LORA": ("a PEFT LoRA adapter", _LAYERS),
}
_PROMPT = ("a PEFT adapter of prefix tuning or prompt tuning", _CONVERT)

_PARTS: tuple[tuple[str, tuple[str, str]], ...] = (
    (
        r"^trained\.",
        (
            "what `polyprefix train` wrote for a method that gives no prefix (infix, fine-tuning, "
            "adapters or LoRA)",
            "it needs weights or computations of its own, so its requests cannot share a batch; "
            "train the task with --method prefix to serve it",
        ),
    ),
    (
        r"(^|\b)optimizer\.\d+\.|^parameters\.(decoder|encoder|cross)\.",
        (
            "a checkpoint of an unfinished `polyprefix train`",
            "the same train command goes on from it",
        ),
    ),
    (r"prefix_tunings\.", ("an AdapterHub prefix-tuning adapter", _CONVERT)),
    (
        r"\.(adapters|loras|prompt_tunings|invertible_adapters)\.\w+\.",
        ("an AdapterHub adapter", _LAYERS),
    ),
    (r"^control_trans", ("a checkpoint of the authors' prefix-tuning code", _CONVERT)),
    (
        r"^decoder_control_trans",
        (
            "a prefix-tuning checkpoint of OpenPrompt",
            "nothing here converts it; train the prefix with PEFT or `polyprefix train`",
        ),
    ),
    (
        r"\.control_trans",
        (
            "a whole model's checkpoint with a prefix in it, as He et al. (2022) and Lightning "
            "save it",
            "save the tensors of the prefix alone, named as in the authors' code (wte.weight, "
            "control_trans.0.weight, …)",
        ),
    ),
    (r"^prefix_task_", _PEFT_TYPES["MULTITASK_PROMPT_TUNING"]),
    (r"^prompt_embeddings|^prompt_encoder\.", _PROMPT),
    (r"lora_(A|B|embedding_A|magnitude)|lora_(up|down)\.", ("a LoRA adapter", _LAYERS)),
    (
        r"^base_model\.model\.|\.(ia3_l|hada_w1|lokr_w|oft_|boft_|vera_lambda|adaption_prompt)",
        ("a PEFT adapter", _LAYERS),
    ),
    (
        r"(^|\.)(h|layers|layer|block|blocks)\.\d+\.|embed_tokens|wte\.weight|lm_head|"
        r"(^|\.)shared\.weight|word_embeddings",
        ("the checkpoint of a whole model", _MODEL),
    ),
)
"""What names of tensors tell, the most telling first."""


def looks_like(start: bytes) -> str | None:
    """What a file is that begins with `start`, and what to do; None if nothing is recognised.

    `start` is the first `START_BYTES` of the file, or all of it.
    """
    found = _by_first_bytes(start)
    return None if found is None else _sentence(*found, Reader.SERVER)


def looks_like_file(path: Path) -> str | None:
    """As `looks_like`, of what `polyprefix prefix push` is given: a file or a folder.

    Knows PEFT's `adapter_config.json`. None also for what cannot be read.
    """
    found = None
    try:
        if path.is_dir():
            found = _by_config(path / "adapter_config.json") or _by_folder(path)
        elif path.is_file():
            with path.open("rb") as file:
                found = _by_first_bytes(file.read(START_BYTES))
            if found == _PROMPT:
                found = _by_config(path.with_name("adapter_config.json")) or found
    except OSError:
        return None
    return None if found is None else _sentence(*found, Reader.PUSH)


def adapter_look(kind: str, reader: Reader) -> str:
    """What PEFT's `peft_type` stands for, and what to do with such an adapter."""
    return _sentence(*_by_kind(kind), reader)


def names_look(names: Iterable[str], reader: Reader) -> str | None:
    """What a checkpoint is whose tensors have these names; None if nothing is recognised."""
    found = _by_names(list(names))
    return None if found is None else _sentence(*found, reader)


def _by_kind(kind: str) -> tuple[str, str]:
    return _PEFT_TYPES.get(kind, (f"a PEFT adapter ({ascii(kind[:40])})", _LAYERS))


def _sentence(what: str, advice: str, reader: Reader) -> str:
    if reader is Reader.PUSH:
        advice = _WITHIN_PUSH.get(advice, advice)
    return f"This looks like {what}: {advice}. {_TAKEN[reader]}"


def _by_first_bytes(start: bytes) -> tuple[str, str] | None:
    for magic, what, advice in _STARTS:
        if start.startswith(magic):
            return what, advice
    if start[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if start.startswith(b"PK\x03\x04"):
        return _by_zip(start)
    # the length of a safetensors header may begin with the same two bytes
    if _PICKLED.match(start) and start[8:9] != b"{":
        return _pickled(start)
    if _PAGE.match(start):
        return "a web page", "download the file itself, not the page about it"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return _by_json(start)
    return _by_tensors(start)


def _by_zip(start: bytes) -> tuple[str, str]:
    if b"data.pkl" in start:
        return _pickled(start)
    if b".npy" in start:
        return "NumPy arrays in a zip (.npz)", "save its tensors as safetensors"
    return "a zip archive", _UNPACK


def _pickled(start: bytes) -> tuple[str, str]:
    """A pickle, whose text is searched for the names of tensors but never run."""
    names = re.findall(rb"[A-Za-z0-9_.]{4,300}", start)
    found = _by_names([name.decode("ascii") for name in names])
    what = "a pickle, as torch.save writes it (.bin, .pt, .pth, .ckpt)"
    if found is not None:
        what += f", and like {found[0]}"
    return what, _PICKLE


def _by_tensors(start: bytes) -> tuple[str, str] | None:
    """By the names in a safetensors header, which may be longer than `start` or damaged."""
    if start[8:9] != b"{":
        return None
    names = [name.decode("utf-8", "replace") for name in _NAME.findall(start)]
    if any(name in {"decoder.keys", "decoder.values"} for name in names):
        return None
    return _by_names(names)


def _by_names(names: list[str]) -> tuple[str, str] | None:
    for pattern, found in _PARTS:
        if any(re.search(pattern, name) for name in names):
            return found
    return None


def _by_json(start: bytes) -> tuple[str, str]:
    if b'"peft_type"' in start:
        return "PEFT's adapter_config.json", "the tensors are in the file beside it"
    if b'"weight_map"' in start:
        return "the index of a sharded model", _MODEL
    if b'"architectures"' in start or b'"model_type"' in start:
        return "a model's config.json", _MODEL
    return "a JSON text", "the tensors are in another file"


def _by_config(path: Path) -> tuple[str, str] | None:
    """What PEFT's or AdapterHub's description of an adapter says; None if there is none."""
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(START_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict):
        return None
    kind = str(config.get("peft_type", ""))
    if kind:
        return _by_kind(kind)
    inner = config.get("config")
    if isinstance(inner, dict) and inner.get("architecture") == "prefix_tuning":
        return "an AdapterHub prefix-tuning adapter", _CONVERT
    return None


def _by_folder(folder: Path) -> tuple[str, str] | None:
    if (folder / "config.json").is_file():
        return "the folder of a whole model", _MODEL
    return None
