"""Make the demo base model: tokenizer, pretraining within a time budget, export.

    python -m app.demo.pretrain --data FOLDER --out FOLDER --minutes 65

An interrupted run continues from its last checkpoint.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from app.demo.corpus import Corpus
from app.demo.packing import IGNORED, PackedBatch, Packer
from app.demo.records import read_sources
from app.demo.run import PretrainingRun, Schedule, waves
from app.demo.tokenizer import END, save_tokenizer, train_tokenizer
from app.model.load import resolve_dtype

_log = logging.getLogger(__name__)

BLOCKS = ".h."
_TOKENIZER_DOCUMENTS = 40_000
_VALIDATION_BATCH = -1


@dataclass(frozen=True)
class Gpt2Recipe:
    """All settings of the run, except the data and the time budget."""

    vocab_size: int = 6144
    width: int = 256
    layers: int = 6
    heads: int = 4
    positions: int = 512
    batch_tokens: int = 4096
    schedule: Schedule = Schedule()
    seed: int = 20210801


def new_model(recipe: Gpt2Recipe, end_id: int) -> GPT2LMHeadModel:
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


def batch_loss(model: GPT2LMHeadModel, batch: PackedBatch) -> torch.Tensor:
    """The mean loss of the tokens that count; the head computes only those.

    Products are in bfloat16 if the machine supports it; weights and the loss are in float32.
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


class Prediction:
    """The demo GPT-2 and its losses: an objective for `PretrainingRun`."""

    def __init__(self, model: GPT2LMHeadModel, packer: Packer, tokens: int) -> None:
        self.model = model
        self._packer = packer
        self._tokens = tokens
        self._validation = packer.batch(_VALIDATION_BATCH)

    def backward(self, step: int) -> tuple[float, int]:
        """Add the gradients of step `step`; return its loss and its tokens, including padding."""
        loss = batch_loss(self.model, self._packer.batch(step))
        torch.autograd.backward(loss)
        return loss.item(), self._tokens

    def validate(self) -> float:
        """The loss on documents that are in no training batch."""
        with torch.no_grad():
            return batch_loss(self.model, self._validation).item()


def export(model: GPT2LMHeadModel, folder: Path) -> None:
    """Write config and half-precision weights in transformers' format."""
    model.half().save_pretrained(folder)


def _tokenizer_texts(corpus: Corpus) -> Iterator[str]:
    for number in range(_TOKENIZER_DOCUMENTS):
        yield corpus.document(-1 - number).text.replace(END, " ")


def pretrain(data: Path, out: Path, *, minutes: float) -> None:
    """Pretrain the demo model in `out`, or continue an interrupted run."""
    out.mkdir(parents=True, exist_ok=True)
    recipe = Gpt2Recipe()
    corpus = Corpus(read_sources(data))
    if not (out / "tokenizer.json").exists():
        _log.info("training the tokenizer")
        trained = train_tokenizer(_tokenizer_texts(corpus), vocab_size=recipe.vocab_size)
        save_tokenizer(trained, out, max_length=recipe.positions)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    end_id = tokenizer.get_vocab()[END]
    packer = Packer(corpus, tokenizer, tokens=recipe.batch_tokens, limit=recipe.positions)
    model = new_model(recipe, end_id)
    objective = Prediction(model, packer, recipe.batch_tokens)
    run = PretrainingRun(out, objective, recipe.schedule, blocks=BLOCKS)
    size = sum(parameter.numel() for parameter in model.parameters())
    _log.info("%s parameters; resumed: %s", f"{size:,}", run.resume())
    run.train(minutes * 60)
    export(model, out)


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
