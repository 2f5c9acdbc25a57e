"""`polyprefix evaluate`: scores of a base model, alone and with prefixes, on held-out data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from app.cli.configuration import base_model, check_output
from app.cli.console import print_json, stderr, stdout
from app.errors import PrefixNotFound

if TYPE_CHECKING:
    from app.evaluation.evaluator import Evaluation
    from app.model.frozen import FrozenModel
    from app.prefix.prefix import Prefix

Model = Annotated[
    str | None,
    typer.Option(
        envvar="POLYPREFIX_MODEL",
        help="Base model: a folder, a hub id, `demo-gpt2` (if not given) or `demo-bart`.",
    ),
]
Data = Annotated[
    Path,
    typer.Option(
        help='JSON lines with `"input"` and `"target"`, or `"targets"` (all references).',
        exists=True,
        dir_okay=False,
        readable=True,
    ),
]
Prefixes = Annotated[
    list[str] | None,
    typer.Option("--prefix", help="A file, or a name in `--store`; may be repeated."),
]
Store = Annotated[Path | None, typer.Option(help="Store of the names.")]
Base = Annotated[bool, typer.Option(help="Score the base model alone as well.")]
Limit = Annotated[int, typer.Option(help="Use only the first inputs (0: all).", min=0)]
Texts = Annotated[Path | None, typer.Option(help="File for the answers to each input.")]
MaxTokens = Annotated[int, typer.Option(help="Length limit for the base model alone.", min=1)]
Template = Annotated[
    str | None,
    typer.Option(help="Prompt template for the base model alone, with `{input}` in it."),
]
Decoding = Annotated[
    str,
    typer.Option(help='Sampling options for the base model alone, as JSON: `{"num_beams": 4}`.'),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def evaluate(
    data: Data,
    model: Model = None,
    prefix: Prefixes = None,
    store: Store = None,
    base: Base = True,
    limit: Limit = 0,
    texts: Texts = None,
    max_tokens: MaxTokens = 128,
    template: Template = None,
    decoding: Decoding = "{}",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Decode held-out inputs with the engine and compare them with their references.

    BLEU is sacrebleu's, lower-cased, with 13a tokens and all references of an input. ROUGE is
    rouge-score's: mean F1 of stemmed words, against the best reference.

    Example: `polyprefix evaluate --data valid.jsonl --store prefixes --prefix e2e`
    """
    from app.datasets.reader import read_examples
    from app.evaluation import evaluator
    from app.model.load import load_model
    from app.prefix.metadata import parse_decoding

    check_output(texts, "--texts")
    alone = {"max_tokens": max_tokens, **parse_decoding(decoding)}
    examples = read_examples(data)[: limit or None]
    frozen = load_model(base_model(model), device=device, dtype="float32")
    prefixes = {name: _prefix(name, store, frozen) for name in prefix or []}
    results: list[dict[str, object]] = []
    said: dict[str, tuple[str, ...]] = {}
    with evaluator.running_engine(frozen) as engine:
        for name, tuned in {**({"base alone": None} if base else {}), **prefixes}.items():
            with stderr().status(f"decoding {len(examples)} inputs: {name}"):
                done = evaluator.evaluate(
                    engine,
                    examples,
                    prefix=tuned,
                    template=None if tuned else template,
                    decoding=None if tuned else alone,
                )
            said[name] = done.texts
            results.append(_result(name, tuned.length if tuned else 0, done))
    if texts is not None:
        _write_texts(texts, [example.input for example in examples], said)
    if as_json:
        print_json({"inputs": len(examples), "signature": done.signature, "results": results})
        return
    columns = ("prefix", "length", "BLEU", "ROUGE-1", "ROUGE-2", "ROUGE-L")
    table = Table(*columns, title=f"{data.name}: {len(examples)} inputs")
    for label, length, *scores in (result.values() for result in results):
        table.add_row(str(label), str(length), *(f"{score:.1f}" for score in scores))
    stdout().print(table)


def _result(name: str, length: int, done: Evaluation) -> dict[str, object]:
    return {"prefix": name, "length": length, "bleu": round(done.bleu, 2), **done.rouge.rounded()}


def _prefix(name: str, store: Path | None, model: FrozenModel) -> Prefix:
    """The prefix in a file or under a name in the store, on the model's device."""
    from app.prefix.codec import decode
    from app.registry.shipped.manifest import read_manifest

    path = Path(name)
    if store is not None and not path.is_file():
        versions = read_manifest(store).prefixes.get(name)
        if versions is None:
            raise PrefixNotFound(f"the store {store} has no prefix '{name}'")
        path = store / "shipped" / f"{versions.versions[-1].digest}.safetensors"
    limit = model.spec.context_limit
    # `decode` refuses links, but the user may name one
    return decode(path.resolve(), model.spec, model.dtype, max_length=limit).to(
        model.device, model.dtype
    )


def _write_texts(path: Path, inputs: list[str], said: dict[str, tuple[str, ...]]) -> None:
    lines = [
        json.dumps({"input": source, **{name: texts[number] for name, texts in said.items()}})
        for number, source in enumerate(inputs)
    ]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
