"""`polyprefix bench train`: the training step of a prefix, compared with PEFT's prefix-tuning.

Both train the keys and values of one prefix directly, by AdamW with clipping, on the same batch.
"""

from __future__ import annotations

import random
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from app.bench.measure import Contender, contest
from app.bench.peers import DTYPES, missing
from app.bench.settings import BenchSettings
from app.bench.shapes import model_folder
from app.errors import InvalidRequest
from app.evaluation.text_pairs import TokenPair
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.model.threads import run_in_fresh_thread
from app.prefix.prefix import KeyValues
from app.training.objective import loss_of

_LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class TrainLoad:
    """A batch: `tokens` of each row (input and target), the last `target_share` of them targets.

    With `shortest`, lengths are even steps from it to `tokens`, in random order.
    """

    rows: int
    tokens: int
    prefix_length: int
    target_share: float
    shortest: int | None = None

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        least = self.tokens if self.shortest is None else self.shortest
        step = (self.tokens - least) / max(1, self.rows - 1)
        found = [round(least + row * step) for row in range(self.rows)]
        random.Random(0).shuffle(found)
        return found

    def pairs(self, vocabulary: int) -> list[TokenPair]:
        """Rows of random tokens; a row of n has n predictions or inputs of both contenders."""
        generator = random.Random(1)
        made = []
        for length in self.lengths:
            row = tuple(generator.randrange(vocabulary) for _ in range(length))
            targets = min(length - 1, max(1, round(length * self.target_share)))
            made.append(TokenPair(row[: length - targets], row[length - targets :]))
        return made


def run_train(settings: BenchSettings, load: TrainLoad) -> dict[str, Any]:
    """Tokens per second and peak memory of a step: ours in each dtype, and PEFT in each.

    Ratios name both dtypes: ours, then PEFT's.
    """
    if load.shortest is not None and not 2 <= load.shortest <= load.tokens:
        raise InvalidRequest("the shortest row needs 2 tokens or more, and fewer than the longest")
    names = list(dict.fromkeys(["float32", settings.dtype]))
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(settings.model, Path(scratch))
        contenders: dict[str, Contender[TrainingStep]] = {
            f"{who} {name}": Contender(_prepared, kind, folder, load, name, settings.threads)
            for name in names
            for who, kind in (("ours", "ours"), ("peft", "peft"))
        }
        with contest(list(contenders.values()), settings.rounds):
            peaks = {name: one.ask(peak_mb) for name, one in contenders.items()}
    tokens = sum(load.lengths)
    speeds = {name: tokens / one.median_seconds for name, one in contenders.items()}
    return _result(settings, load, speeds, peaks)


def _result(
    settings: BenchSettings,
    load: TrainLoad,
    speeds: dict[str, float],
    peaks: dict[str, float],
) -> dict[str, Any]:
    peers = {name: speed for name, speed in speeds.items() if name.startswith("peft")}
    faster = max(peers, key=lambda name: peers[name])
    best = f"ours {settings.dtype}"
    pairs = {(best, faster), ("ours float32", "peft float32")}
    return {
        "bench": "train",
        "device": settings.device,
        "ours": {
            "tokens_per_s": round(speeds[best], 2),
            **{f"tokens_per_s_{n[5:]}": round(s, 2) for n, s in speeds.items() if n not in peers},
            **{f"peak_mb_{n[5:]}": round(m) for n, m in peaks.items() if n not in peers},
        },
        "peers": {
            name: {"tokens_per_s": round(speed, 2), "peak_mb": round(peaks[name])}
            for name, speed in peers.items()
        },
        "ratio": {
            f"{ours[5:]} / {theirs}": round(speeds[ours] / speeds[theirs], 3)
            for ours, theirs in sorted(pairs)
        },
        "lengths": load.lengths,
    }


def peak_mb(_: object) -> float:
    """The most memory that this process has held so far, in MiB: weights and all."""
    # in a process of its own, which has loaded and trained and done nothing else
    status = Path("/proc/self/status")
    if not status.exists():
        raise InvalidRequest(f"peak memory is not known on {sys.platform}")
    lines = status.read_text().splitlines()
    [peak] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peak) / 1024


class TrainingStep(ABC):
    """A training step; calling it takes one."""

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        self._parameters = parameters
        self._optimizer = torch.optim.AdamW(
            parameters, _LEARNING_RATE, weight_decay=0.0, fused=True
        )

    @abstractmethod
    def loss(self) -> torch.Tensor:
        """The batch's loss, with gradients."""

    def __call__(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        if not bool(torch.isfinite(loss)):
            raise RuntimeError("a contender's loss is not finite")


class _OurStep(TrainingStep):
    def __init__(self, model: FrozenModel, load: TrainLoad) -> None:
        shape = model.spec.decoder
        size = (shape.layers, shape.kv_heads, load.prefix_length, shape.head_dim)
        self._prefix = KeyValues(*(torch.randn(size).requires_grad_() for _ in range(2)))
        self._model, self._pairs = model, load.pairs(int(model.hf.config.vocab_size))
        super().__init__([self._prefix.keys, self._prefix.values])

    def loss(self) -> torch.Tensor:
        return loss_of(self._model, {"decoder": self._prefix}, self._pairs).mean


class PeftStep(TrainingStep):
    """A step of PEFT's prefix-tuning on the rows of `load`, right-padded."""

    def __init__(self, folder: str, load: TrainLoad, dtype: str) -> None:
        try:
            from peft import PrefixTuningConfig, get_peft_model
        except ImportError as error:
            raise missing("peft") from error
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])
        config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=load.prefix_length)
        self._model = get_peft_model(model, config).eval()
        pairs = load.pairs(int(model.config.vocab_size))
        longest = max(load.lengths)
        ids = torch.zeros(len(pairs), longest, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, pair in enumerate(pairs):
            ids[row, : len(pair)] = torch.tensor([*pair.prompt_ids, *pair.target_ids])
            mask[row, : len(pair)] = 1
            labels[row, len(pair.prompt_ids) : len(pair)] = torch.tensor(pair.target_ids)
        self._inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        super().__init__([p for p in self._model.parameters() if p.requires_grad])

    def loss(self) -> torch.Tensor:
        loss: torch.Tensor = self._model(**self._inputs).loss
        return loss


def _prepared(kind: str, folder: str, load: TrainLoad, dtype: str, threads: int) -> TrainingStep:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if kind == "peft":
        return PeftStep(folder, load, dtype)
    return _OurStep(load_for_training(folder, dtype, threads), load)


def load_for_training(folder: str, dtype: str, threads: int) -> FrozenModel:
    """The model with `threads` threads for its products, on the CPU."""
    return run_in_fresh_thread(_model, folder, dtype, threads)


def _model(folder: str, dtype: str, threads: int) -> FrozenModel:
    torch.set_num_threads(threads)
    return load_model(folder, device="cpu", dtype=dtype)
