"""The end of `polyprefix train`: scores, the file or the store, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.console import human_bytes, plain, print_warning, stderr, stdout, this_program

if TYPE_CHECKING:
    from app.evaluation.metrics import Rouge
    from app.prefix.prefix import Prefix
    from app.training.session import Session


def announce(lines: list[str]) -> None:
    """Print the commands that a user may want to run next."""
    for line in lines:
        stdout().print(f"next: {plain(line)}", soft_wrap=True)


def publish_trained(session: Session, out: Path) -> None:
    """Score and write what is no prefix."""
    from app.training.methods.files import write_trained

    file = session.trained(finish(session))
    write_trained(file, out)
    session.trainer.discard_checkpoint()
    count = file.provenance["trained_parameters"]
    stdout().print(
        f"wrote {out}: {file.method}, {count} trained parameters, {human_bytes(out.stat().st_size)}"
    )
    stdout().print(
        "A server cannot mix it with other requests in a batch; to serve this task, train it with"
        " --method prefix"
    )


def finish(session: Session) -> dict[str, Any]:
    """Score the result on held-out data, if there is any."""
    with stderr().status("decoding the held-out inputs"):
        outcome = session.outcome()
    progress, base, tuned = outcome.progress, outcome.base, outcome.tuned
    what = "prefix" if session.gives_prefix else session.recipe.method
    on = "held-out" if session.validation else "training"
    unit = "a token" if session.model.encoder_decoder is not None else "a target"
    stdout().print(
        f"loss {unit} on {progress.pairs} {on} pairs: first {progress.first:.2f}, last"
        f" {progress.last:.2f}, {progress.baseline} {progress.base:.2f}"
    )
    if base is not None and tuned is not None:
        than = progress.baseline if progress.on_task else "base"
        stdout().print(f"BLEU on held-out inputs: {than} {base.bleu:.1f}, {what} {tuned.bleu:.1f}")
        rouges = f"{than} {_shown(base.rouge)}, {what} {_shown(tuned.rouge)}"
        stdout().print(f"ROUGE-1, -2, -L: {rouges}")
    if outcome.faults:
        recipe = session.recipe
        print_warning(
            f"this {what} has not learned its task: {'; '.join(outcome.faults)}. Look at the data,"
            f" or try another learning rate than {recipe.lr:g} (--lr) or more than"
            f" {session.trainer.total} steps (--steps)"
        )
    return outcome.scores


def _shown(rouge: Rouge) -> str:
    return " / ".join(f"{value:.1f}" for value in rouge.rounded().values())


def publish(
    prefix: Prefix, name: str, *, store: Path | None, out: Path | None, alias: str | None
) -> None:
    """Write the prefix to a file, a store or both."""
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


@dataclass(frozen=True)
class NextPlaces:
    """What the next commands name: the base model and the prefix trained on, if given; files.

    `reading` are the options of `polyprefix evaluate` for `data`.
    """

    model: str | None
    data: Path
    on: str | None
    store: Path | None
    out: Path | None
    reading: Sequence[str] = ()


def next_commands(name: str, alias: str | None, places: NextPlaces) -> list[str]:
    """The commands that a user may want to run next."""
    program, out, on = this_program(), places.out, places.on
    model = ["--model", places.model] if places.model is not None else []
    store = ["--store", str(places.store)] if places.store is not None else []
    made = str(out) if out else name
    scored = ["--prefix", made] if on is None else ["--prefix", f"{on}+{made}", "--compare", on]
    data = ["--data", str(places.data), *places.reading]
    lines = [[program, "evaluate", *model, *data, *store, *scored]]
    if out is not None:
        pointed = ["--alias", alias] if alias else []
        lines.append([program, "prefix", "push", str(out), "--name", name, *pointed])
    if store:
        lines.append([program, "serve", *model, *store])
    return [shlex.join(line) for line in lines]
