"""The peers: what a user would build from today's libraries.

A peer is a function from (model folder, load, dtype, batch size) to a callable that computes the
whole load once, with exactly as many tokens as requested. It imports its library when it is called.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from app.bench.load import Item, Load
from app.bench.measure import Round
from app.errors import InvalidRequest

Peer = Callable[[str, Load, str, int], Round]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def hf_generate(folder: str, load: Load, dtype: str, batch: int) -> Round:
    """`model.generate` on static batches in order of arrival, without prefixes."""
    model = _plain_model(folder, dtype)

    def run() -> None:
        for items in batches(load, batch):
            generate(model, items)

    return run


def peft_by_task(folder: str, load: Load, dtype: str, batch: int) -> Round:
    """PEFT prefix-tuning, task after task: each `generate` has one active prefix."""
    try:
        from peft import PrefixTuningConfig, get_peft_model
    except ImportError as error:
        raise missing("peft") from error
    model = _plain_model(folder, dtype)
    configs = {
        task: PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=load.prefix_lengths[task]
        )
        for task in dict.fromkeys(item.prefix for item in load.items)
    }
    first, *others = configs
    wrapped = get_peft_model(model, configs[first], adapter_name=f"task{first}")
    for task in others:
        wrapped.add_adapter(f"task{task}", configs[task])
    wrapped.to(DTYPES[dtype]).eval()

    def run() -> None:
        for task, items in task_batches(load, batch):
            wrapped.set_adapter(f"task{task}")
            generate(wrapped, items)

    return run


def _plain_model(folder: str, dtype: str) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype]).eval()
    # nothing may end a row early
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


@torch.inference_mode()
def generate(
    model: Any, items: Sequence[Item], *, has_encoder: bool = False, num_beams: int = 1
) -> None:
    """One static batch until its longest row is done: padded left, for an encoder right."""
    longest = max(len(item.prompt_ids) for item in items)
    pad, ids, mask = int(has_encoder), [], []
    for item in items:
        prompt, padding = list(item.prompt_ids), longest - len(item.prompt_ids)
        before, after = (0, padding) if has_encoder else (padding, 0)
        ids.append([pad] * before + prompt + [pad] * after)
        mask.append([0] * before + [1] * len(prompt) + [0] * after)
    new = max(item.num_new for item in items)
    output = model.generate(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        max_new_tokens=new,
        num_beams=num_beams,
        do_sample=False,
    )
    check_made(output.shape[1] - (1 if has_encoder else longest), new)


def ctranslate2_batches(folder: str, load: Load, _dtype: str, batch: int, *, kind: str) -> Round:
    """CTranslate2 on static batches, without prefixes; `kind` is the dtype of its products."""
    generator, names = converted("Generator", folder, kind)

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
            check_made(min(len(result.sequences_ids[0]) for result in results), new)

    return run


PEERS: dict[str, Peer] = {
    "hf-generate": hf_generate,
    "peft": peft_by_task,
    "ctranslate2-float32": partial(ctranslate2_batches, kind="float32"),
    "ctranslate2-int8": partial(ctranslate2_batches, kind="int8"),
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


def converted(runner: str, folder: str, kind: str) -> tuple[Any, list[str]]:
    """CTranslate2's `runner` of a model, and the text of each token id: it takes tokens by name."""
    try:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter
    except ImportError as error:
        raise missing("ctranslate2") from error
    target = Path(tempfile.mkdtemp()) / kind
    TransformersConverter(folder).convert(str(target), quantization=kind)
    model = getattr(ctranslate2, runner)(
        str(target), device="cpu", compute_type=kind, intra_threads=torch.get_num_threads()
    )
    [vocabulary] = target.glob("*vocabulary.json")
    names = json.loads(vocabulary.read_text())
    if len(names) < AutoConfig.from_pretrained(folder).vocab_size:
        raise RuntimeError("the converted vocabulary is too short")
    return model, list(names)


def check_made(made: int, new: int) -> None:
    """Raise RuntimeError unless a peer made as many new tokens as it should."""
    if made != new:
        raise RuntimeError(f"a peer made {made} tokens instead of {new}")


def batches(load: Load, batch: int) -> list[Sequence[Item]]:
    """The load in static batches, in order of arrival."""
    return [load.items[start : start + batch] for start in range(0, len(load.items), batch)]


def task_batches(load: Load, batch: int) -> Iterator[tuple[int, Sequence[Item]]]:
    """The load task by task, as (prefix, items) in static batches."""
    for task in dict.fromkeys(item.prefix for item in load.items):
        items = [item for item in load.items if item.prefix == task]
        for start in range(0, len(items), batch):
            yield task, items[start : start + batch]


def missing(package: str) -> InvalidRequest:
    """The error for a peer that is not installed."""
    return InvalidRequest(
        f"the peer needs {package}, which is not installed: pip install 'polyprefix[bench]'"
    )
