"""`polyprefix train`: train a prefix on a frozen base model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.training.jobs_option import with_jobs_option
from app.cli.training.options import MethodOptions, Out, Store, with_method_options
from app.cli.training.progress_bar import train_visibly
from app.cli.training.result import (
    NextPlaces,
    announce,
    finish,
    next_commands,
    publish,
    publish_trained,
)
from app.cli.training.run_plan import plan_run


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
Length = Annotated[
    int | None,
    typer.Option(
        help="Length of the prefix: 5 to 40 for data-to-text, 100 for summaries; by default 10."
        " With 0 it is as long as `--words`."
    ),
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
        " million, 1e-3 up to 250 million, else 5e-5 (the paper's value for GPT-2 medium)."
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
        help="Initialise with the keys and values of this text; helps with little data. It is cut"
        " or repeated to the length."
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


@with_jobs_option
@with_method_options
def train(
    chosen: MethodOptions,
    data: Data,
    name: Name,
    model: Model = None,
    valid: Valid = None,
    store: Store = None,
    out: Out = None,
    length: Length = None,
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

    A line of the data looks like `{"input": "name : Aromi", "target": "It is called Aromi."}`. If a
    run is interrupted, the same command continues from its last checkpoint. The result goes to
    `--out` for an upload, to `--store` for the next start of a server, or to both.

    With `--jobs`, each line of a file is a JSON object with these options, and the runs share their
    passes through the model.

    Example: `polyprefix train --data train.jsonl --valid valid.jsonl --name shop --length 20`
    """
    options = locals()
    from app.training.session import Session

    run = plan_run(chosen, options)
    session = Session(run.job)
    train_visibly(session, fresh=not resume, log_dir=chosen.log_dir)
    if not session.gives_prefix:
        publish_trained(session, run.trained_file)
        return
    publish(session.prefix(finish(session)), name, store=store, out=run.out, alias=alias)
    session.trainer.discard_checkpoint()
    places = NextPlaces(model, valid or data, chosen.on, store, run.out, chosen.reading_arguments)
    announce(next_commands(name, alias, places))
