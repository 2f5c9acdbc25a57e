"""The peers: what a user would build from today's libraries.

A peer is a function from (model folder, load, dtype, batch size) to a callable that computes the
whole load once, with exactly as many tokens as requested. It imports its library when it is called.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from app.bench.load import Item, Load
from app.bench.measure import Round
from app.errors import InvalidRequest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def hf_generate(folder: str, load: Load, dtype: str, batch: int) -> Round:
    """`model.generate` on static batches in order of arrival, without prefixes."""
    model = _plain_model(folder, dtype)

    def run() -> None:
        for items in batches(load, batch):
            _generate(model, items)

    return run


def peft_by_task(folder: str, load: Load, dtype: str, batch: int) -> Round:
    """PEFT prefix-tuning, task after task: each `generate` has one active prefix."""
    try:
        from peft import PrefixTuningConfig, get_peft_model
    except ImportError as error:
        raise missing("peft") from error
    model = _plain_model(folder, dtype)
    tasks: dict[int, list[Item]] = {}
    for item in load.items:
        tasks.setdefault(item.prefix, []).append(item)
    configs = {
        task: PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=load.prefix_lengths[task]
        )
        for task in tasks
    }
    first, *others = configs
    wrapped = get_peft_model(model, configs[first], adapter_name=f"task{first}")
    for task in others:
        wrapped.add_adapter(f"task{task}", configs[task])
    wrapped.to(DTYPES[dtype]).eval()

    def run() -> None:
        for task, items in tasks.items():
            wrapped.set_adapter(f"task{task}")
            for start in range(0, len(items), batch):
                _generate(wrapped, items[start : start + batch])

    return run


def ctranslate2_float32(folder: str, load: Load, _dtype: str, batch: int) -> Round:
    """CTranslate2 in fp32 on static batches, without prefixes."""
    return _ctranslate2(folder, load, batch, "float32")


def ctranslate2_int8(folder: str, load: Load, _dtype: str, batch: int) -> Round:
    """CTranslate2 with int8 products on static batches, without prefixes."""
    return _ctranslate2(folder, load, batch, "int8")


PEERS: dict[str, Callable[[str, Load, str, int], Round]] = {
    "hf-generate": hf_generate,
    "peft": peft_by_task,
    "ctranslate2-float32": ctranslate2_float32,
    "ctranslate2-int8": ctranslate2_int8,
}
"""Peers by their names in results."""


def expand_peers(text: str) -> list[str]:
    """The peers of a comma-separated list; `ctranslate2` means both of its kinds."""
    names: list[str] = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        kinds = [peer for peer in PEERS if peer == name or peer.startswith(f"{name}-")]
        if not kinds:
            raise InvalidRequest(f"unknown peer {name!r}; there are {', '.join(PEERS)}")
        names.extend(kinds)
    return names


def _plain_model(folder: str, dtype: str) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype]).eval()
    # nothing may end a row early
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


@torch.inference_mode()
def _generate(model: Any, items: Sequence[Item]) -> None:
    """One static batch, left-padded, until its longest row is done."""
    longest = max(len(item.prompt_ids) for item in items)
    padding = [longest - len(item.prompt_ids) for item in items]
    ids = [[0] * pad + list(item.prompt_ids) for pad, item in zip(padding, items, strict=True)]
    mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
    new = max(item.num_new for item in items)
    output = model.generate(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        max_new_tokens=new,
        do_sample=False,
    )
    if output.shape[1] != longest + new:
        raise RuntimeError(f"a peer made {output.shape[1] - longest} tokens instead of {new}")


def _ctranslate2(folder: str, load: Load, batch: int, kind: str) -> Round:
    try:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter
    except ImportError as error:
        raise missing("ctranslate2") from error
    target = Path(tempfile.mkdtemp()) / kind
    TransformersConverter(folder).convert(str(target), quantization=kind)
    generator = ctranslate2.Generator(
        str(target), device="cpu", compute_type=kind, intra_threads=torch.get_num_threads()
    )
    names = token_names(target / "vocabulary.json", folder)

    def run() -> None:
        for items in batches(load, batch):
            new = max(item.num_new for item in items)
            results = generator.generate_batch(
                [[names[token] for token in item.prompt_ids] for item in items],
                min_length=new,
                max_length=new,
                beam_size=1,
                include_prompt_in_result=False,
            )
            made = min(len(result.sequences_ids[0]) for result in results)
            if made != new:
                raise RuntimeError(f"a peer made {made} tokens instead of {new}")

    return run


def token_names(vocabulary: Path, folder: str) -> list[str]:
    """The text of each token id: CTranslate2 takes tokens by name."""
    names = json.loads(vocabulary.read_text())
    if len(names) < AutoConfig.from_pretrained(folder).vocab_size:
        raise RuntimeError("the converted vocabulary is too short")
    return list(names)


def batches(load: Load, batch: int) -> list[Sequence[Item]]:
    """The load in static batches, in order of arrival."""
    return [load.items[start : start + batch] for start in range(0, len(load.items), batch)]


def missing(package: str) -> InvalidRequest:
    """The error for a peer that is not installed."""
    return InvalidRequest(
        f"the peer needs {package}, which is not installed: pip install 'polyprefix[bench]'"
    )
