"""`polyprefix distill`: turn a text into a short prefix that acts like the text in the context."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.cli.configuration import base_model, check_folder, check_output
from app.cli.console import print_warning, stderr, stdout, this_program
from app.cli.training.options import Out, Store
from app.cli.training.progress_bar import train_visibly
from app.cli.training.result import announce, publish

if TYPE_CHECKING:
    from app.prefix.prefix import Prefix
    from app.training.distillation.session import DistillationSession

TextFile = Annotated[
    Path, typer.Option(help="The text: a UTF-8 file, shorter or longer than the model's context.")
]
Name = Annotated[str, typer.Option(help="Name of the prefix in requests.")]
Length = Annotated[int, typer.Option(help="Positions of the prefix; fewer than the text's tokens.")]
Model = Annotated[
    str | None,
    typer.Option(
        envvar="POLYPREFIX_MODEL",
        help="Base model without an encoder: a folder, a hub id or `demo-gpt2` (the default). It"
        " is the teacher and the student.",
    ),
]
Steps = Annotated[
    int, typer.Option(help="Optimiser steps (0: four passes over the exchanges).", min=0)
]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Exchanges per step.", min=1)]
Rate = Annotated[float | None, typer.Option(help="Peak learning rate; by default 0.02.")]
Exchanges = Annotated[
    int,
    typer.Option(
        help="Questions and continuations that the model makes (0: 256, or 32 for each part of a"
        " long text).",
        min=0,
    ),
]
PartSize = Annotated[
    int,
    typer.Option(
        "--part",
        help="Tokens of a part of the text (0: as many as fit into the context, at most 1024).",
        min=0,
    ),
]
Start = Annotated[
    str,
    typer.Option(
        help="What the prefix starts from: the keys and values of the text's `first` tokens, or of"
        " pieces that `spread` over it."
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        help="Prompt template with `{input}` in it; by default ChatML's user message if the"
        " tokenizer has `<|im_start|>`, else the input alone."
    ),
]
ContextTemplate = Annotated[
    str | None,
    typer.Option(
        help="How the teacher reads the text, with `{input}` in its place; by default ChatML's"
        " system message, else the text and an empty line."
    ),
]
MaxTokens = Annotated[int, typer.Option(help="Default maximum length of answers.", min=1)]
Alias = Annotated[str | None, typer.Option(help="Alias to point at the new version.")]
Seed = Annotated[int, typer.Option(help="The same seed, text and model give the same exchanges.")]
Dtype = Annotated[str, typer.Option(help="`fp32`, or `bf16` for the model's products.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
CheckpointFile = Annotated[
    Path | None,
    typer.Option(
        help="File of the checkpoint; by default `NAME.checkpoint`. It holds the exchanges, so it"
        " tells about the text."
    ),
]
CheckpointEvery = Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)]
Resume = Annotated[bool, typer.Option(help="Continue from the checkpoint, if there is one.")]
LogDir = Annotated[Path | None, typer.Option(help="Folder for TensorBoard logs of loss and rate.")]
Note = Annotated[str | None, typer.Option(help="A note to store with the prefix.")]


def distill(
    text: TextFile,
    name: Name,
    length: Length = 64,
    model: Model = None,
    store: Store = None,
    out: Out = None,
    steps: Steps = 0,
    batch: BatchSize = 8,
    lr: Rate = None,
    exchanges: Exchanges = 0,
    part: PartSize = 0,
    start: Start = "first",
    template: Template = None,
    context_template: ContextTemplate = None,
    max_tokens: MaxTokens = 128,
    alias: Alias = None,
    seed: Seed = 101,
    dtype: Dtype = "fp32",
    device: Device = "auto",
    checkpoint: CheckpointFile = None,
    checkpoint_every: CheckpointEvery = 50,
    resume: Resume = True,
    log_dir: LogDir = None,
    note: Note = None,
) -> None:
    """Distil a text into a prefix: the model answers as if it had the text in its context.

    The model makes questions and continuations from parts of the text. Then a prefix learns the
    next-token distributions that the model has with the text in its context. If a run is
    interrupted, the same command continues from its last checkpoint.

    Example: `polyprefix distill --text handbook.txt --name handbook --length 64`
    """
    from app.training.distillation.session import DistillationJob, DistillationSession
    from app.training.recipe import Recipe

    place = checkpoint or Path(f"{name}.checkpoint")
    out = Path(f"{name}.safetensors") if store is None and out is None else out
    _check(name, alias, store, out, place)
    job = DistillationJob(
        base_model(model),
        text,
        Recipe(length=length, max_steps=steps, batch_size=batch, lr=lr, seed=seed, dtype=dtype),
        place,
        exchanges=exchanges,
        part=part,
        start=start,
        template=template,
        context=context_template,
        decoding={"max_tokens": max_tokens},
        device=device,
        checkpoint_every=checkpoint_every,
        note=note,
    )
    prefix = _distilled(DistillationSession(job), resume, log_dir)
    publish(prefix, name, store=store, out=out, alias=alias)
    place.unlink(missing_ok=True)
    announce(_next_commands(name, model, store=store, out=out, alias=alias))


def _distilled(session: DistillationSession, resume: bool, log_dir: Path | None) -> Prefix:
    """Run the session under progress lines; its checkpoint remains."""
    _prepare(session, resume=resume)
    train_visibly(session, fresh=True, log_dir=log_dir)
    return session.prefix(_scores(session))


def _check(
    name: str, alias: str | None, store: Path | None, out: Path | None, checkpoint: Path
) -> None:
    """Raise InvalidRequest for a bad name or a place that cannot be written."""
    from app.prefix.reference import check_alias, check_name

    check_name(name)
    if alias is not None:
        check_alias(alias)
    check_output(out, "--out")
    check_output(checkpoint, "--checkpoint")
    if store is not None:
        check_folder(store, "--store")


def _prepare(session: DistillationSession, *, resume: bool) -> None:
    """Make the exchanges and what the teacher says to them, under a progress line."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    titles = {
        "exchanges": "making exchanges (parts of the text)",
        "teacher": "asking the teacher (exchanges)",
    }
    with Progress(*columns, console=stderr()) as progress:
        tasks = {what: progress.add_task(title, total=None) for what, title in titles.items()}

        def report(what: str, done: int, total: int) -> None:
            progress.update(tasks[what], completed=done, total=total)

        continued = session.prepare(report, resume=resume)
    if continued:
        stderr().print(f"continues from step {session.trainer.step}")


def _scores(session: DistillationSession) -> dict[str, object]:
    """What the run has reached, printed; a warning if it has reached nothing."""
    scores = session.outcome().scores
    found = scores["divergence"]
    stdout().print(
        f"KL to the model with the text in context, in nats a token of {scores['exchanges']}"
        f" held-out exchanges: without context {found['base']:.3f}, from the text's own words"
        f" {found['first']:.3f}, distilled {found['last']:.3f}"
    )
    if not found["last"] < min(found["first"], found["base"]):
        print_warning(
            "the prefix is no nearer to the text than its start or no context at all; try another"
            f" learning rate than {session.recipe.lr:g} (--lr), more steps (--steps) or more"
            " --exchanges"
        )
    return scores


def _next_commands(
    name: str, model: str | None, *, store: Path | None, out: Path | None, alias: str | None
) -> list[str]:
    program, lines = this_program(), []
    if out is not None:
        pointed = ["--alias", alias] if alias else []
        lines.append([program, "prefix", "push", str(out), "--name", name, *pointed])
    if store is not None:
        named = ["--model", model] if model is not None else []
        lines.append([program, "serve", *named, "--store", str(store)])
    return [shlex.join(line) for line in lines]
