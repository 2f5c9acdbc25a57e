"""The end of `polyprefix train`: scores, the file or the store, and what to type next."""

from __future__ import annotations

import shlex
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
    scores: dict[str, Any] = {}
    if session.trainer.best_loss is not None:
        scores["validation_loss"] = round(session.trainer.best_loss, 4)
    progress = session.trainer.progress()
    what = "prefix" if session.gives_prefix else session.recipe.method
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
        stdout().print(f"BLEU on held-out inputs: base {base.bleu:.1f}, {what} {tuned.bleu:.1f}")
        stdout().print(f"ROUGE-1, -2, -L: base {_shown(base.rouge)}, {what} {_shown(tuned.rouge)}")
        if not tuned.bleu > base.bleu:
            faults.append(
                f"its answers to held-out inputs are no better than the base model's own"
                f" (BLEU {tuned.bleu:.1f} and {base.bleu:.1f})"
            )
    if faults:
        recipe = session.recipe
        print_warning(
            f"this {what} has not learned its task: {'; '.join(faults)}. Look at the data, or try"
            f" another learning rate than {recipe.lr:g} (--lr) or more than"
            f" {session.trainer.total} steps (--steps)"
        )
    return scores


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


def next_commands(
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
