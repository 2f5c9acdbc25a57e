"""`polyprefix evaluate`: scores of a base model, prefixes and baselines on held-out data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.configuration import base_model, check_output
from app.cli.console import print_json
from app.cli.evaluation import data_options as given
from app.cli.evaluation.report import print_tables, report

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
        help="Inputs with all their references: JSON lines, CSV, TSV, a `datasets` folder, or files"
        " of E2E, WebNLG, DART or XSum.",
        exists=True,
        readable=True,
    ),
]
Prefixes = Annotated[
    list[str] | None,
    typer.Option(
        "--prefix",
        help="A file that `polyprefix train` wrote, or a name in `--store`; may be repeated.",
    ),
]
Baselines = Annotated[
    list[str] | None,
    typer.Option(
        "--baseline",
        help="`e2e-template` or `summary-regex`, which need no model; may be repeated.",
    ),
]
Store = Annotated[Path | None, typer.Option(help="Store of the names.")]
Base = Annotated[
    bool | None,
    typer.Option(
        "--base/--no-base",
        help="Score the base model alone as well; by default unless there are only baselines.",
    ),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        help="A task of the paper (e2e, webnlg, dart, xsum), `all`, or names such as `bleu,ter`. A"
        " task also sets its beams, 5 or 6, where prefix and options say nothing."
    ),
]
Beams = Annotated[int | None, typer.Option(help="Beams of all systems.", min=1, max=64)]
Compare = Annotated[
    str | None,
    typer.Option(
        help="Compare with this system by paired bootstrap: `base`, a prefix, a baseline, or a file"
        " with one output a line."
    ),
]
Samples = Annotated[int, typer.Option(help="Samples of the bootstrap.", min=10, max=100_000)]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)]
BertModel = Annotated[Path | None, typer.Option(help="Folder of BERTScore's model.")]
BertLayers = Annotated[
    int, typer.Option(help="Layer of BERTScore's model that counts (0: the last).", min=0)
]
Limit = Annotated[int, typer.Option(help="Use only the first inputs (0: all).", min=0)]
Outputs = Annotated[
    Path | None,
    typer.Option("--texts", "--outputs", help="File for the outputs of each input."),
]
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
    baseline: Baselines = None,
    store: Store = None,
    base: Base = None,
    metrics: Metrics = None,
    beams: Beams = None,
    compare: Compare = None,
    samples: Samples = 1000,
    seed: Seed = 12345,
    bertscore_model: BertModel = None,
    bertscore_layers: BertLayers = 0,
    limit: Limit = 0,
    data_format: given.Format = None,
    input_column: given.InputColumn = None,
    target_column: given.TargetColumns = None,
    split: given.Split = None,
    subset: given.Subset = None,
    subset_seed: given.SubsetSeed = 101,
    hold_out: given.HoldOutOption = None,
    texts: Outputs = None,
    max_tokens: MaxTokens = 128,
    template: Template = None,
    decoding: Decoding = "{}",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Decode held-out inputs with the engine and compare them with their references.

    BLEU is sacrebleu's, lower-cased, with 13a tokens and all references of an input. ROUGE is
    rouge-score's: mean F1 of stemmed words, against the best reference.

    Example: `polyprefix evaluate --data valid.jsonl --store prefixes --prefix e2e --metrics e2e`
    """
    from app.cli.evaluation.run import Decoder, Systems, compared, hold_out_parts, score
    from app.evaluation.scores import BEAMS, DEFAULT, metric_names
    from app.evaluation.systems import write_outputs
    from app.prefix.metadata import parse_decoding

    check_output(texts, "--texts")
    names = metric_names(metrics) if metrics else DEFAULT
    alone = {"max_tokens": max_tokens, **parse_decoding(decoding)}
    reading = given.read_options(data_format, input_column, target_column, split)
    examples = given.read_data(data, reading, subset, subset_seed)[: limit or None]
    parts = hold_out_parts(hold_out, examples)
    systems = Systems.named(prefix or [], baseline or [], base, compare)
    decoder = Decoder(examples, template, alone, beams, BEAMS.get(metrics or ""))
    said = decoder.texts(systems, base_model(model), store, device)
    bert = (bertscore_model, bertscore_layers)
    results = [score(one, examples, names, bert, parts) for one in said]
    if systems.other is not None:
        results = compared(results, systems.other, samples=samples, seed=seed)
    if texts is not None:
        write_outputs(texts, examples, results)
    if as_json:
        print_json(report(examples, results, names))
    else:
        print_tables(data.name, examples, results)
