"""Make the demo BART: tokenizer, pretraining within a time budget, export.

    python -m app.demo.pretrain_bart --data FOLDER --gpt2 FOLDER --out FOLDER --minutes 65

Tokens and their initial vectors come from the demo GPT-2. An interrupted run continues from its
last checkpoint.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F
from transformers import BartConfig, BartForConditionalGeneration

from app.demo.exchanges import Exchanges
from app.demo.packing import IGNORED
from app.demo.pairing import PairBatch, Pairer
from app.demo.records import read_sources
from app.demo.run import PretrainingRun, Schedule, waves
from app.demo.tokenizer import BART_SPECIALS, bart_tokenizer, save_bart_tokenizer
from app.model.load import resolve_dtype

_log = logging.getLogger(__name__)

BLOCKS = ".layers."
_VALIDATION_STEPS = (-1, -2)
_FIRST_STD = 0.04


@dataclass(frozen=True)
class BartRecipe:
    """All settings of the run, except the data and the time budget."""

    width: int = 256
    layers: int = 3
    heads: int = 4
    positions: int = 1024
    longest: int = 640
    step_tokens: int = 6144
    step_parts: int = 8
    schedule: Schedule = Schedule()
    seed: int = 20210801


def new_model(recipe: BartRecipe, vocab_size: int) -> BartForConditionalGeneration:
    """A BART with random weights and no dropout; `layers` counts the layers of each side."""
    torch.manual_seed(recipe.seed)
    config = BartConfig(
        vocab_size=vocab_size,
        max_position_embeddings=recipe.positions,
        d_model=recipe.width,
        encoder_layers=recipe.layers,
        decoder_layers=recipe.layers,
        encoder_attention_heads=recipe.heads,
        decoder_attention_heads=recipe.heads,
        encoder_ffn_dim=4 * recipe.width,
        decoder_ffn_dim=4 * recipe.width,
        activation_function="gelu",
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        scale_embedding=False,
    )
    model = BartForConditionalGeneration(config)
    with torch.no_grad():
        for side in (model.model.encoder, model.model.decoder):
            positions = side.embed_positions
            positions.weight[positions.offset :] = waves(recipe.positions, recipe.width)
    return model


def take_vectors(model: BartForConditionalGeneration, vectors: torch.Tensor) -> None:
    """Start the tokens from `vectors` [tokens, width]; the first is GPT-2's special token.

    The other tokens follow in the same order behind BART's special tokens. The mean is subtracted
    and the rest is scaled down: BART's last layer is normalised and would otherwise start with
    very large logits.
    """
    shared = model.model.shared.weight
    first = len(BART_SPECIALS)
    own = vectors[1:] - vectors[1:].mean(dim=0)
    with torch.no_grad():
        nn.init.normal_(shared, std=_FIRST_STD)
        shared[first : first + len(own)] = own * (_FIRST_STD / own.std())


class Denoising:
    """The demo BART and its losses: an objective for `PretrainingRun`."""

    def __init__(self, model: BartForConditionalGeneration, pairer: Pairer) -> None:
        self.model = model
        self._pairer = pairer
        self._validation = [batch for n in _VALIDATION_STEPS for batch in pairer.step(n)]

    def backward(self, step: int) -> tuple[float, int]:
        """Add the gradients of step `step`; return its loss per token and its number of tokens."""
        batches = self._pairer.step(step)
        counted = sum(_counted(batch) for batch in batches)
        total = 0.0
        for batch in batches:
            loss = summed_loss(self.model, batch) / counted
            torch.autograd.backward(loss)
            total += loss.item()
        return total, counted + sum(int(batch.attended.sum()) for batch in batches)

    def validate(self) -> float:
        """The loss per token on exchanges that are in no training batch."""
        with torch.no_grad():
            total = sum(summed_loss(self.model, batch).item() for batch in self._validation)
        return total / sum(_counted(batch) for batch in self._validation)


def summed_loss(model: BartForConditionalGeneration, batch: PairBatch) -> torch.Tensor:
    """The sum of the losses of all target tokens; the head computes only those.

    Products are in bfloat16 if the machine supports it; weights and the loss are in float32.
    """
    products = resolve_dtype("auto", torch.device("cpu"))
    with torch.autocast("cpu", products, enabled=products == torch.bfloat16):
        hidden = model.model(
            input_ids=batch.source,
            attention_mask=batch.attended,
            decoder_input_ids=batch.decoder_input,
            use_cache=False,
        ).last_hidden_state
        counted = batch.labels != IGNORED
        logits = model.lm_head(hidden[counted])
    return F.cross_entropy(logits.float(), batch.labels[counted], reduction="sum")


def export(model: BartForConditionalGeneration, folder: Path) -> None:
    """Write config and half-precision weights in transformers' format."""
    model.half().save_pretrained(folder)


def _counted(batch: PairBatch) -> int:
    return int((batch.labels != IGNORED).sum())


def pretrain(data: Path, gpt2: Path, out: Path, *, minutes: float) -> None:
    """Pretrain the demo BART in `out`, or continue an interrupted run."""
    out.mkdir(parents=True, exist_ok=True)
    recipe = BartRecipe()
    tokenizer = bart_tokenizer(Tokenizer.from_file(str(gpt2 / "tokenizer.json")))
    save_bart_tokenizer(tokenizer, out, max_length=recipe.positions)
    model = new_model(recipe, tokenizer.get_vocab_size())
    take_vectors(model, load_file(gpt2 / "model.safetensors")["transformer.wte.weight"].float())
    exchanges = Exchanges(read_sources(data))
    pairer = Pairer(
        exchanges,
        tokenizer,
        tokens=recipe.step_tokens,
        parts=recipe.step_parts,
        limit=recipe.longest,
    )
    run = PretrainingRun(out, Denoising(model, pairer), recipe.schedule, blocks=BLOCKS)
    size = sum(parameter.numel() for parameter in model.parameters())
    _log.info("%s parameters; resumed: %s", f"{size:,}", run.resume())
    run.train(minutes * 60)
    export(model, out)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m app.demo.pretrain_bart", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with webnlg/, dart/, …")
    parser.add_argument("--gpt2", type=Path, required=True, help="the demo GPT-2's folder")
    parser.add_argument("--out", type=Path, required=True, help="for checkpoints and the model")
    parser.add_argument("--minutes", type=float, default=65.0, help="time budget for training")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pretrain(options.data, options.gpt2, options.out, minutes=options.minutes)


if __name__ == "__main__":
    _main()
