"""`polyprefix bench evaluate`: decoding by beams for scores, on the engine and one by one.

The authors scored a prefix by `model.generate` of one input at a time.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from app.bench.load import random_modules, random_prefix, uniform_load
from app.bench.measure import Contender, contest
from app.bench.peers import DTYPES
from app.bench.settings import BenchSettings
from app.bench.shapes import model_folder
from app.engine.engine import Engine
from app.errors import InvalidRequest
from app.evaluation.evaluator import OFFLINE, EngineRunner, Evaluator
from app.model.families import is_encoder_decoder
from app.model.load import load_model
from app.model.threads import run_in_fresh_thread
from app.prefix.prefix import Prefix
from app.prefix.spec import ModuleShape

_SEED = 0
_SHORTEST = 16
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class EvaluationLoad:
    """So many inputs of `_SHORTEST` to `longest` tokens, behind one prefix; at most `new` tokens.

    End-of-text ends an output, as in an evaluation.
    """

    inputs: int
    longest: int
    new: int
    num_beams: int
    prefix_length: int

    @property
    def prompts(self) -> list[Tokens]:
        """The inputs as tokens."""
        load = uniform_load(
            rows=self.inputs, prefixes=1, prefix_length=1, prompt=self.longest, new=1
        )
        generator = random.Random(_SEED)
        least = min(_SHORTEST, self.longest)
        return [item.prompt_ids[: generator.randint(least, self.longest)] for item in load.items]


class _Decoder(Protocol):
    """Decodes the whole load when it is called."""

    outputs: Sequence[Tokens]

    def __call__(self) -> None: ...


def run_evaluate(settings: BenchSettings, load: EvaluationLoad) -> dict[str, Any]:
    """New tokens per second of the engine in each dtype, and of `model.generate` in each.

    Ratios are of the times for all inputs and name both dtypes: ours, then that of `generate`.
    `outputs_that_differ` counts the inputs with other tokens in fp32.
    """
    names = list(dict.fromkeys(["float32", settings.dtype]))
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(settings.model, Path(scratch))
        if is_encoder_decoder(AutoConfig.from_pretrained(folder)):
            raise InvalidRequest(
                "--model has an encoder; this benchmark is for models without one, such as GPT-2"
            )
        contenders: dict[str, Contender[_Decoder]] = {
            f"{who} {name}": Contender(kind, folder, load, name, settings.threads)
            for name in names
            for who, kind in (("ours", EngineDecoder), ("generate", PlainDecoder))
        }
        with contest(list(contenders.values()), settings.rounds):
            outputs = {name: one.ask(_outputs) for name, one in contenders.items()}
    seconds = {name: one.median_seconds for name, one in contenders.items()}
    return _result(settings, load, seconds, outputs)


def _result(
    settings: BenchSettings,
    load: EvaluationLoad,
    seconds: dict[str, float],
    outputs: dict[str, Sequence[Tokens]],
) -> dict[str, Any]:
    speeds = {name: sum(map(len, outputs[name])) / taken for name, taken in seconds.items()}
    peers = [name for name in seconds if name.startswith("generate")]
    best, faster = f"ours {settings.dtype}", min(peers, key=lambda name: seconds[name])
    pairs = {(best, faster), ("ours float32", "generate float32")}
    exact = zip(outputs["ours float32"], outputs["generate float32"], strict=True)
    return {
        "bench": "evaluate",
        "device": settings.device,
        "ours": {
            "tokens_per_s": round(speeds[best], 2),
            "inputs_per_s": round(load.inputs / seconds[best], 2),
            "outputs_that_differ": sum(mine != theirs for mine, theirs in exact),
        },
        "peers": {
            name: {
                "tokens_per_s": round(speeds[name], 2),
                "inputs_per_s": round(load.inputs / seconds[name], 2),
            }
            for name in peers
        },
        "ratio": {
            f"{ours[5:]} / {theirs}": round(seconds[theirs] / seconds[ours], 3)
            for ours, theirs in sorted(pairs)
        },
        "inputs": load.inputs,
    }


def _outputs(decoder: _Decoder) -> Sequence[Tokens]:
    return decoder.outputs


class EngineDecoder:
    """`polyprefix evaluate`: the engine gets all inputs at once."""

    def __init__(self, folder: str, load: EvaluationLoad, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.outputs: Sequence[Tokens] = ()
        self._prompts = load.prompts
        self._engine, prefix = run_in_fresh_thread(_prepare, folder, load, dtype)
        self._engine.start()
        options = {"num_beams": load.num_beams, "max_tokens": load.new}
        runner = EngineRunner(self._engine)
        self._evaluator = Evaluator(self._engine.model, prefix, runner, options)

    def __call__(self) -> None:
        answers = asyncio.run(self._evaluator.answers(self._prompts))
        self.outputs = [answer.token_ids for answer in answers]

    def stop(self) -> None:
        """End the engine."""
        self._engine.stop()


def _prepare(folder: str, load: EvaluationLoad, dtype: str) -> tuple[Engine, Prefix]:
    model = load_model(folder, device="cpu", dtype=dtype)
    prefix = random_prefix(model.spec, load.prefix_length, _SEED)
    return Engine(model, OFFLINE), prefix.to(model.device, model.dtype)


class PlainDecoder:
    """`model.generate` of one input at a time, with the prefix as `past_key_values`."""

    def __init__(self, folder: str, load: EvaluationLoad, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.outputs: Sequence[Tokens] = ()
        self._load, self._prompts = load, load.prompts
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype]).eval()
        config = model.config
        heads = config.num_attention_heads
        shape = ModuleShape(
            layers=config.num_hidden_layers,
            kv_heads=getattr(config, "num_key_value_heads", heads),
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )
        self._model = model
        self._prefix = random_modules({"decoder": shape}, load.prefix_length, _SEED)["decoder"]

    def __call__(self) -> None:
        self.outputs = [self._output(prompt) for prompt in self._prompts]

    @torch.inference_mode()
    def _output(self, prompt: Tokens) -> Tokens:
        columns, dtype, cache = self._load.prefix_length, self._model.dtype, DynamicCache()
        for layer, pair in enumerate(zip(self._prefix.keys, self._prefix.values, strict=True)):
            keys, values = (
                each.to(dtype).expand(self._load.num_beams, -1, -1, -1) for each in pair
            )
            cache.update(keys, values, layer)
        made = self._model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, columns + len(prompt), dtype=torch.long),
            position_ids=torch.arange(columns, columns + len(prompt))[None],
            past_key_values=cache,
            num_beams=self._load.num_beams,
            max_new_tokens=self._load.new,
            do_sample=False,
            pad_token_id=0,
        )
        return tuple(made[0, len(prompt) :].tolist())
