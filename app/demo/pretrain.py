"""Make the demo base model: tokenizer, pretraining within a time budget, export.

    python -m app.demo.pretrain --data FOLDER --out FOLDER --minutes 65

The run can be interrupted and goes on from its last checkpoint. Knows nothing about prefixes.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from app.demo.corpus import Corpus
from app.demo.optimizer import Muon
from app.demo.packing import IGNORED, Batch, Packer
from app.demo.records import read_sources
from app.demo.tokenizer import END, save_tokenizer, train_tokenizer
from app.model.load import resolve_dtype
from app.training.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)

_log = logging.getLogger(__name__)

CHECKPOINT = "pretraining.checkpoint"
_TOKENIZER_DOCUMENTS = 40_000
_VALIDATION_BATCH = -1
_REPORT_STEPS = 20
_LONGEST_WAVE = 512.0
_LONGEST_STEP_S = 10.0
"""What a step counts at most against the budget: a suspended process loses nothing."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the run, besides the data and the clock."""

    vocab_size: int = 6144
    width: int = 256
    layers: int = 6
    heads: int = 4
    positions: int = 512
    batch_tokens: int = 4096
    matrix_lr: float = 0.02
    other_lr: float = 3e-3
    weight_decay: float = 0.02
    warmup_steps: int = 50
    final_share: float = 0.03
    seed: int = 20210801


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0


def new_model(recipe: Recipe, end_id: int) -> GPT2LMHeadModel:
    """A GPT-2 with random weights and no dropout."""
    torch.manual_seed(recipe.seed)
    config = GPT2Config(
        vocab_size=recipe.vocab_size,
        n_positions=recipe.positions,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end_id,
        eos_token_id=end_id,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wpe.weight.copy_(waves(recipe.positions, recipe.width))
    return model


def waves(positions: int, width: int) -> torch.Tensor:
    """Sines and cosines [positions, width] to start the learned positions from.

    Copying needs to know which token stands before; a short run should not have to learn that.
    """
    rates = _LONGEST_WAVE ** -torch.linspace(0, 1, width // 2)
    angles = torch.arange(positions)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1) * (width / 2) ** -0.5


def optimizers_for(model: GPT2LMHeadModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks; AdamW for embeddings, biases and norms."""
    matrices: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    for name, parameter in model.named_parameters():
        inside = ".h." in name and parameter.ndim == 2
        (matrices if inside else others).append(parameter)
    return [
        Muon(matrices, recipe.matrix_lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(others, recipe.other_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def lr_share(step: int, done: float, recipe: Recipe) -> float:
    """Part of the peak rate after `done` (0 to 1) of the budget: warm-up, then a cosine."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return recipe.final_share + (1 - recipe.final_share) * cosine


def batch_loss(model: GPT2LMHeadModel, batch: Batch) -> torch.Tensor:
    """Mean loss of the tokens that count; the head runs on those alone.

    Products are in bfloat16 where the machine multiplies it; weights and the loss are in float32.
    """
    products = resolve_dtype("auto", torch.device("cpu"))
    with torch.autocast("cpu", products, enabled=products == torch.bfloat16):
        hidden = model.transformer(
            input_ids=batch.input_ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        counted = batch.labels != IGNORED
        logits = model.lm_head(hidden[counted])
    return F.cross_entropy(logits.float(), batch.labels[counted])


class Run:
    """One pretraining run in a folder."""

    def __init__(self, out: Path, recipe: Recipe, model: GPT2LMHeadModel, packer: Packer) -> None:
        self.out, self.recipe, self.model, self.packer = out, recipe, model, packer
        self.progress = Progress()
        self._optimizers = optimizers_for(model, recipe)
        self._validation = packer.batch(_VALIDATION_BATCH)

    def train(self, seconds: float, *, save_every: int = 100, max_steps: int | None = None) -> None:
        """Train until `seconds` of work are used up, or to step `max_steps`."""
        self.model.train()
        losses: list[float] = []
        progress = self.progress
        while progress.seconds < seconds and (max_steps is None or progress.step < max_steps):
            started = time.monotonic()
            losses.append(self._step(progress.seconds / seconds))
            progress.step += 1
            progress.tokens += self.recipe.batch_tokens
            progress.seconds += min(time.monotonic() - started, _LONGEST_STEP_S)
            if progress.step % save_every == 0:
                self.save()
                _log.info("validation loss %.4f", self.validate())
            if progress.step % _REPORT_STEPS == 0:
                self._report(sum(losses) / len(losses), seconds)
                losses.clear()
        self.save()

    def validate(self) -> float:
        """Loss on documents of which no training batch is made."""
        with torch.no_grad():
            return batch_loss(self.model, self._validation).item()

    def save(self) -> None:
        """Write the checkpoint, replacing the one before."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.named_parameters()}
        for index, optimizer in enumerate(self._optimizers):
            tensors |= optimizer_tensors(optimizer, f"optimizer{index}")
        save_checkpoint(self.out / CHECKPOINT, tensors, asdict(self.progress))

    def resume(self) -> bool:
        """Go on from the folder's checkpoint; False when there is none."""
        path = self.out / CHECKPOINT
        if not path.exists():
            return False
        saved = load_checkpoint(path)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(saved.tensors[f"model.{name}"])
        for index, optimizer in enumerate(self._optimizers):
            restore_optimizer(optimizer, f"optimizer{index}", saved.tensors)
        self.progress = Progress(**saved.state)
        return True

    def _step(self, done: float) -> float:
        share = lr_share(self.progress.step, done, self.recipe)
        peaks = (self.recipe.matrix_lr, self.recipe.other_lr)
        for optimizer, peak in zip(self._optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * share
        loss = batch_loss(self.model, self.packer.batch(self.progress.step))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def _report(self, loss: float, seconds: float) -> None:
        progress = self.progress
        _log.info(
            "step %d  loss %.4f  %s tokens  %.0f tokens/s  %.1f of %.1f min",
            *(progress.step, loss, f"{progress.tokens:,}"),
            *(progress.tokens / progress.seconds, progress.seconds / 60, seconds / 60),
        )


def export(model: GPT2LMHeadModel, folder: Path) -> None:
    """Write config and half-precision weights as transformers loads them."""
    model.half().save_pretrained(folder)


def _tokenizer_texts(corpus: Corpus) -> Iterator[str]:
    for number in range(_TOKENIZER_DOCUMENTS):
        yield corpus.document(-1 - number).text.replace(END, " ")


def pretrain(data: Path, out: Path, *, minutes: float) -> None:
    """Pretrain the demo model in `out`, or go on with a run that was interrupted."""
    out.mkdir(parents=True, exist_ok=True)
    recipe = Recipe()
    corpus = Corpus(read_sources(data))
    if not (out / "tokenizer.json").exists():
        _log.info("training the tokenizer")
        trained = train_tokenizer(_tokenizer_texts(corpus), vocab_size=recipe.vocab_size)
        save_tokenizer(trained, out, max_length=recipe.positions)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    end_id = tokenizer.get_vocab()[END]
    packer = Packer(corpus, tokenizer, tokens=recipe.batch_tokens, limit=recipe.positions)
    run = Run(out, recipe, new_model(recipe, end_id), packer)
    size = sum(parameter.numel() for parameter in run.model.parameters())
    _log.info("%s parameters; resumed: %s", f"{size:,}", run.resume())
    run.train(minutes * 60)
    export(run.model, out)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m app.demo.pretrain", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with webnlg/, dart/, …")
    parser.add_argument("--out", type=Path, required=True, help="for checkpoints and the model")
    parser.add_argument("--minutes", type=float, default=65.0, help="time budget for training")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pretrain(options.data, options.out, minutes=options.minutes)


if __name__ == "__main__":
    _main()
