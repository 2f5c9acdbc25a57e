"""`polyprefix bench …`: our speed as a ratio to what else there is, in one run on this machine.

Knows the terminal; what is measured and how is in `app.bench`.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import typer

from app.cli.console import Commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help=(
        "Measure speed as a ratio to peers, in one run on this machine.\n\n"
        "Peers run one after another in processes of their own, warmed up, with the same weights;"
        " figures are medians. The last line is one JSON object. PEFT and CTranslate2 come with"
        " `pip install 'polyprefix[bench]'`."
    ),
)

Model = Annotated[
    str, typer.Option(help="A folder or hub id; `gpt2-shape` is GPT-2 124M with random weights.")
]
Dtype = Annotated[str, typer.Option(help="`auto`, `float32` or `bfloat16`; for peers alike.")]
Peers = Annotated[
    str, typer.Option(help="From `hf-generate`, `peft`, `ctranslate2`, by commas; may be empty.")
]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds that count; one more warms up.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads for everybody; 0 takes all cores.")]
Rows = Annotated[int, typer.Option(min=1, help="Requests at the same time.")]

Family = Annotated[str, typer.Option(help="`gpt2`, or `bart` with its own shape, rows and prompt.")]
FamilyModel = Annotated[
    str | None,
    typer.Option(
        help="A folder or hub id, or random weights: `gpt2-shape`, `bart-base-shape`,"
        " `bart-large-shape`. By default the family's first."
    ),
]


class _Usual(NamedTuple):
    """What a family is measured on where nothing is said."""

    model: str
    rows: int
    prompt: int
    long_prompts: int


_USUAL = {
    "gpt2": _Usual("gpt2-shape", rows=64, prompt=32, long_prompts=1),
    "bart": _Usual("bart-base-shape", rows=32, prompt=256, long_prompts=8),
}


def _usual(family: str) -> _Usual:
    if family not in _USUAL:
        raise typer.BadParameter(f"{family!r} is neither gpt2 nor bart", param_hint="--family")
    return _USUAL[family]


@app.command()
def engine(
    family: Family = "gpt2",
    model: FamilyModel = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Requests at the same time; 64, for BART 32.")
    ] = None,
    prefixes: Annotated[int, typer.Option(min=1, help="Distinct prefixes.")] = 8,
    prefix_length: Annotated[int, typer.Option(min=1, help="Positions of each prefix.")] = 20,
    prompt: Annotated[
        int | None, typer.Option(min=1, help="Tokens of each prompt; 32, for BART 256.")
    ] = None,
    new: Annotated[int, typer.Option(min=1, help="New tokens of each row.")] = 48,
    beams: Annotated[int, typer.Option(min=1, help="Beams of each request; 1 is greedy.")] = 1,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=2.0, help="Of our engine; 0 is greedy, as peers are.")
    ] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Of our engine.")] = 1.0,
    sampling: Annotated[
        list[str] | None,
        typer.Option(
            help="`KEY=VALUE`, any number of times: another sampling parameter of our engine;"
            " `logit_bias=1024` biases so many tokens. What is not greedy takes turns with what is."
        ),
    ] = None,
    dtype: Dtype = "auto",
    peers: Peers = "hf-generate,peft,ctranslate2",
    rounds: Rounds = 3,
    threads: Threads = 0,
) -> None:
    """New tokens per second of a whole batch with mixed prefixes, prefill included."""
    from app.bench.engine_bench import run_engine
    from app.bench.load import parse_sampling, uniform_load
    from app.bench.peers import expand_peers
    from app.bench.report import print_result
    from app.bench.settings import make_settings

    usual = _usual(family)
    given = [f"temperature={temperature}", f"top_p={top_p}", *(sampling or [])]
    names = expand_peers(peers)
    if family == "bart":
        # it puts prefixes into BART's decoder alone
        names = [name for name in names if name != "peft"]
    print_result(
        run_engine(
            make_settings(model or usual.model, dtype, rounds, threads),
            names,
            uniform_load(
                rows=rows or usual.rows,
                prefixes=prefixes,
                prefix_length=prefix_length,
                prompt=prompt or usual.prompt,
                new=new,
                num_beams=beams,
                sampling=parse_sampling(given),
            ),
        )
    )


@app.command()
def continuous(
    model: Model = "gpt2-shape",
    requests: Annotated[int, typer.Option(min=1, help="Requests in all.")] = 96,
    per_second: Annotated[float, typer.Option(min=0.01, help="Mean arrivals per second.")] = 50.0,
    rows: Rows = 64,
    dtype: Dtype = "auto",
    peers: Peers = "hf-generate,ctranslate2",
    rounds: Rounds = 2,
    threads: Threads = 0,
) -> None:
    """Poisson arrivals at saturation against static batches that wait for their longest row."""
    from app.bench.engine_bench import run_continuous
    from app.bench.peers import expand_peers
    from app.bench.report import print_result
    from app.bench.settings import make_settings

    print_result(
        run_continuous(
            make_settings(model, dtype, rounds, threads),
            expand_peers(peers),
            requests=requests,
            per_second=per_second,
            max_rows=rows,
        )
    )


@app.command()
def stall(
    family: Family = "gpt2",
    model: FamilyModel = None,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="Prompts that arrive at once; 1, for BART 8.")
    ] = None,
    dtype: Dtype = "auto",
    threads: Threads = 0,
) -> None:
    """What prompts of 900 tokens do to the p99 time between tokens of 16 rows that decode."""
    from app.bench.engine_bench import run_stall
    from app.bench.report import print_result
    from app.bench.settings import make_settings

    usual = _usual(family)
    settings = make_settings(model or usual.model, dtype, 1, threads)
    print_result(run_stall(settings, prompts or usual.long_prompts))


@app.command()
def http(
    model: Model = "gpt2-shape",
    rows: Annotated[int, typer.Option(min=1, help="Streams at the same time.")] = 64,
    prefixes: Annotated[int, typer.Option(min=1, help="Distinct prefixes.")] = 8,
    prefix_length: Annotated[int, typer.Option(min=1, help="Positions of each prefix.")] = 20,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 32,
    new: Annotated[int, typer.Option(min=1, help="New tokens of each stream.")] = 48,
    dtype: Dtype = "auto",
    rounds: Rounds = 3,
    threads: Threads = 0,
) -> None:
    """The load of `engine` through a server on loopback, streamed to another process."""
    from app.bench.http_bench import run_http
    from app.bench.load import uniform_load
    from app.bench.report import print_result
    from app.bench.settings import make_settings

    print_result(
        run_http(
            make_settings(model, dtype, rounds, threads),
            uniform_load(
                rows=rows,
                prefixes=prefixes,
                prefix_length=prefix_length,
                prompt=prompt,
                new=new,
            ),
        )
    )


@app.command()
def prefixes(
    model: Model = "gpt2-shape",
    counts: Annotated[str, typer.Option(help="Distinct prefixes, by commas.")] = "1,10,100,1000",
    length: Annotated[int, typer.Option(min=1, help="Positions of each prefix.")] = 10,
    rows: Rows = 32,
    new: Annotated[int, typer.Option(min=1, help="New tokens of each request.")] = 32,
    dtype: Dtype = "auto",
    threads: Threads = 0,
) -> None:
    """Throughput with more and more distinct prefixes, when the device tier holds 100."""
    from app.bench.prefixes_bench import run_prefixes
    from app.bench.report import print_result
    from app.bench.settings import make_settings

    print_result(
        run_prefixes(
            make_settings(model, dtype, 1, threads),
            counts=[int(count) for count in counts.split(",")],
            length=length,
            rows=rows,
            new=new,
        )
    )


@app.command()
def catalog(
    names: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Prefixes of one tenant.")
    ] = 100_000,
) -> None:
    """What resolving a name costs where one tenant has very many; no model is needed."""
    from app.bench.catalog_bench import run_catalog
    from app.bench.report import print_result

    print_result(run_catalog(names=names))
