"""`polyprefix train`: train a prefix on a frozen base model."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.cli.configuration import base_model, check_folder, check_output
from app.cli.console import human_bytes, plain, print_warning, stderr, stdout, this_program

if TYPE_CHECKING:
    from app.evaluation.metrics import Rouge
    from app.prefix.prefix import Prefix
    from app.training.recipe import Recipe
    from app.training.session import Session
    from app.training.trainer import Report

_LOSS_MEMORY = 0.95
"""Weight of the past in the displayed loss, which smooths single batches."""


def _file(help_text: str) -> Any:
    return typer.Option(help=help_text, exists=True, readable=True)


Model = Annotated[
    str | None,
    typer.Option(
        envvar="POLYPREFIX_MODEL",
        help="Base model: a folder, a hub id, `demo-gpt2` (the default) or `demo-bart`. It does not"
        " change.",
    ),
]
Data = Annotated[
    Path,
    _file(
        "Training data: JSON lines, CSV, TSV, a `datasets` folder; E2E, WebNLG, DART, XSum files."
    ),
]
Valid = Annotated[
    Path | None,
    _file("Held-out data in the same form, to select the best state and to compute scores."),
]
Name = Annotated[str, typer.Option(help="Name of the prefix in requests.")]
Store = Annotated[
    Path | None,
    typer.Option(
        help="Store for the prefix; a server that starts on it offers the prefix to all tenants."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="File for `polyprefix prefix push`; by default `NAME.safetensors`, unless there is a"
        " store."
    ),
]
Length = Annotated[
    int, typer.Option(help="Length of the prefix: 5 to 40 for data-to-text, 100 for summaries.")
]
Epochs = Annotated[
    int | None,
    typer.Option(
        help="Passes over the data; by default 10, with at least 200 steps for base models of up to"
        " 250 million parameters, and at most 400 for those of up to 50 million."
    ),
]
Steps = Annotated[int, typer.Option(help="Optimiser steps instead of epochs (0: epochs).")]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Sentences per step; by default 8, or 5 above 250 million parameters."),
]
Rate = Annotated[
    float | None,
    typer.Option(
        help="Peak learning rate. The default depends on the base model's parameters: 3e-3 up to 50"
        " million, 4e-4 up to 250 million, else 5e-5 (the paper's value for GPT-2 medium)."
    ),
]
Warmup = Annotated[
    int | None,
    typer.Option(
        help="Steps in which the learning rate rises; by default 30, or 0 above 250 million"
        " parameters."
    ),
]
Words = Annotated[
    str | None,
    typer.Option(
        help="Initialise with the keys and values of these words; helps with little data."
    ),
]
Hidden = Annotated[
    int | None,
    typer.Option(
        help="Width of the networks that compute the prefix; by default 512, or 800 with an encoder"
        " (the paper's values)."
    ),
]
Modules = Annotated[
    str | None,
    typer.Option(
        help="Attention modules of a BART with a prefix; by default `decoder,encoder,cross`."
    ),
]
ModelDropout = Annotated[
    bool | None,
    typer.Option(
        "--model-dropout/--no-model-dropout",
        help="Dropout of the base model while training; by default on with an encoder and off"
        " without, as in the paper.",
        show_default=False,
    ),
]
MaxSource = Annotated[
    int, typer.Option(help="Maximum tokens of an encoder's input (0: as many as it takes).")
]
ValidateEvery = Annotated[int, typer.Option(help="Steps between validations (0: one per epoch).")]
Keep = Annotated[str, typer.Option(help="The state to keep: `best` or `last`.")]
Template = Annotated[
    str | None,
    typer.Option(
        help="Prompt template with `{input}` in it. By default ` {input} <|endoftext|>` for GPT-2,"
        " the same with their own special tokens for other models, and for encoders what their"
        " tokenizer makes of any text."
    ),
]
MaxTokens = Annotated[int, typer.Option(help="Default maximum length of answers.")]
Decoding = Annotated[
    str,
    typer.Option(
        help='Default sampling options, as JSON: `{"num_beams": 4, "no_repeat_ngram_size": 3}`.'
    ),
]
Alias = Annotated[str | None, typer.Option(help="Alias to point at the new version.")]
Seed = Annotated[int, typer.Option(help="The same seed and data give the same prefix.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
CheckpointFile = Annotated[
    Path | None, typer.Option(help="File of the checkpoint; by default `NAME.checkpoint`.")
]
CheckpointEvery = Annotated[int, typer.Option(help="Steps between checkpoints.")]
Resume = Annotated[bool, typer.Option(help="Continue from the checkpoint, if there is one.")]
Note = Annotated[str | None, typer.Option(help="A note to store with the prefix.")]


def train(
    data: Data,
    name: Name,
    model: Model = None,
    valid: Valid = None,
    store: Store = None,
    out: Out = None,
    length: Length = 10,
    epochs: Epochs = None,
    steps: Steps = 0,
    batch_size: BatchSize = None,
    lr: Rate = None,
    warmup: Warmup = None,
    words: Words = None,
    hidden: Hidden = None,
    modules: Modules = None,
    model_dropout: ModelDropout = None,
    max_source: MaxSource = 0,
    validate_every: ValidateEvery = 0,
    keep: Keep = "best",
    template: Template = None,
    max_tokens: MaxTokens = 128,
    decoding: Decoding = "{}",
    alias: Alias = None,
    seed: Seed = 101,
    device: Device = "auto",
    checkpoint: CheckpointFile = None,
    checkpoint_every: CheckpointEvery = 200,
    resume: Resume = True,
    note: Note = None,
) -> None:
    """Train a prefix: a few key/value vectors per layer, while the base model stays frozen.

    A line of the data looks like `{"input": "name : Aromi", "target": "It is called Aromi."}`
    (`"output"` means the same as `"target"`). You can interrupt a run at any time; the same command
    continues from the last checkpoint, which a finished run removes. The result goes to `--out` for
    an upload, to `--store` for the next start of a server, or to both.

    Example: `polyprefix train --data train.jsonl --valid valid.jsonl --name shop --length 20`
    """
    from app.prefix.metadata import parse_decoding
    from app.training.session import Session, TrainingJob

    # the only local names so far are the parameters and the imports
    recipe = _recipe(locals())
    _check_names(name, alias)
    base, place = base_model(model), checkpoint or Path(f"{name}.checkpoint")
    if store is None and out is None:
        out = Path(f"{name}.safetensors")
    _check_places(store, out, place)
    limits = {"max_tokens": max_tokens, **parse_decoding(decoding)}
    options = (template, limits, device, checkpoint_every, note)
    session = Session(TrainingJob(base, data, recipe, place, valid, *options))
    _train(session, fresh=not resume)
    _publish(_finish(session), name, store=store, out=out, alias=alias)
    session.trainer.discard_checkpoint()
    evaluated = ["--model", model] if model is not None else []
    for line in _next(name, valid or data, evaluated, store=store, out=out, alias=alias):
        stdout().print(f"next: {plain(line)}", soft_wrap=True)


def _recipe(options: Mapping[str, Any]) -> Recipe:
    """The recipe of the options of `train`."""
    from app.training.recipe import Recipe

    names = {field.name for field in fields(Recipe)}
    given = {name: value for name, value in options.items() if name in names}
    modules = options["modules"]
    return Recipe(
        **given
        | {
            "modules": tuple(part.strip() for part in modules.split(",")) if modules else (),
            "max_steps": options["steps"],
            "warmup_steps": options["warmup"],
            "initial_words": options["words"],
        }
    )


def _check_names(name: str, alias: str | None) -> None:
    from app.prefix.reference import check_alias, check_name

    check_name(name)
    if alias is not None:
        check_alias(alias)


def _check_places(store: Path | None, out: Path | None, checkpoint: Path) -> None:
    check_output(out, "--out")
    check_output(checkpoint, "--checkpoint")
    if store is not None:
        check_folder(store, "--store")


def _train(session: Session, *, fresh: bool) -> None:
    """Run the session under a progress bar."""
    notes = stderr()
    trainer = session.trainer
    if not fresh and trainer.resume():
        notes.print(f"continues from step {trainer.step}")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes) as progress:
        task = progress.add_task("training", total=trainer.total, completed=trainer.step)
        shown: float | None = None

        def report(done: Report) -> None:
            nonlocal shown
            past = done.loss if shown is None else shown
            shown = _LOSS_MEMORY * past + (1 - _LOSS_MEMORY) * done.loss
            progress.update(task, completed=done.step, description=f"loss {shown:.2f}")
            if done.validation_loss is not None:
                progress.print(f"step {done.step}: validation loss {done.validation_loss:.3f}")

        session.train(report)


def _finish(session: Session) -> Prefix:
    """Score the result on held-out data, if there is any, and make the prefix."""
    scores: dict[str, Any] = {}
    if session.trainer.best_loss is not None:
        scores["validation_loss"] = round(session.trainer.best_loss, 4)
    progress = session.trainer.progress()
    on = "held-out" if session.validation else "training"
    unit = "a token" if session.model.encoder_decoder is not None else "a target"
    stdout().print(
        f"loss {unit} on {progress.pairs} {on} pairs: first {progress.first:.2f}, last"
        f" {progress.last:.2f}, base model alone {progress.base:.2f}"
    )
    faults = [progress.fault] if progress.fault else []
    scores["loss"] = {"first": progress.first, "last": progress.last, "base": progress.base}
    with stderr().status("decoding the held-out inputs"):
        measured = session.score()
    if measured is not None:
        base, tuned = measured
        scores |= {"bleu": round(tuned.bleu, 2), "bleu_of_base_alone": round(base.bleu, 2)}
        scores["bleu_signature"] = tuned.signature
        scores["rouge"] = tuned.rouge.rounded()
        scores["rouge_of_base_alone"] = base.rouge.rounded()
        stdout().print(f"BLEU on held-out inputs: base {base.bleu:.1f}, prefix {tuned.bleu:.1f}")
        stdout().print(f"ROUGE-1, -2, -L: base {_shown(base.rouge)}, prefix {_shown(tuned.rouge)}")
        if not tuned.bleu > base.bleu:
            faults.append(
                f"its answers to held-out inputs are no better than the base model's own"
                f" (BLEU {tuned.bleu:.1f} and {base.bleu:.1f})"
            )
    if faults:
        recipe = session.recipe
        print_warning(
            f"this prefix has not learned its task: {'; '.join(faults)}. Look at the data, or try"
            f" another learning rate than {recipe.lr:g} (--lr) or more than"
            f" {session.trainer.total} steps (--steps)"
        )
    return session.prefix(scores)


def _shown(rouge: Rouge) -> str:
    return " / ".join(f"{value:.1f}" for value in rouge.rounded().values())


def _publish(
    prefix: Prefix, name: str, *, store: Path | None, out: Path | None, alias: str | None
) -> None:
    from app.training.publish import add_to_store, write_prefix

    if out is not None:
        write_prefix(prefix, out)
        stdout().print(f"wrote {out}")
    if store is not None:
        add_to_store(prefix, store, name, alias=alias)
    stdout().print(
        f"{name}@{prefix.digest[:12]}  length {prefix.length}, {human_bytes(prefix.nbytes)}"
        + (f", in {store}" if store is not None else "")
    )


def _next(
    name: str,
    data: Path,
    model: list[str],
    *,
    store: Path | None,
    out: Path | None,
    alias: str | None,
) -> list[str]:
    """The commands that a user may want to run next."""
    program = this_program()
    scored = ["--prefix", str(out)] if out else ["--store", str(store), "--prefix", name]
    lines = [[program, "evaluate", *model, "--data", str(data), *scored]]
    if out is not None:
        pointed = ["--alias", alias] if alias else []
        lines.append([program, "prefix", "push", str(out), "--name", name, *pointed])
    if store is not None:
        lines.append([program, "serve", *model, "--store", str(store)])
    return [shlex.join(line) for line in lines]
