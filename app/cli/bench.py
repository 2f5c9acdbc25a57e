"""`polyprefix bench …`: our speed relative to other implementations, in one run on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import typer

from app.cli.console import command_group

app = command_group(
    "Measure our speed relative to peers, in one run on this machine.\n\n"
    "Each peer runs in its own process, warmed up and with the same weights; they take turns."
    " The figures are medians. The last line is one JSON object."
    " `pip install 'polyprefix[bench]'` installs PEFT and CTranslate2."
)

Model = Annotated[
    str, typer.Option(help="A folder or hub id; `gpt2-shape` is GPT-2 124M with random weights.")
]
Dtype = Annotated[str, typer.Option(help="`auto`, `float32` or `bfloat16`, for peers too.")]
Peers = Annotated[
    str,
    typer.Option(
        help="A list of `hf-generate`, `peft` and `ctranslate2` with commas; may be empty."
    ),
]
Rounds = Annotated[int, typer.Option(min=1, help="Measured rounds, after one round to warm up.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads of each peer; 0 means all cores.")]
Rows = Annotated[int, typer.Option(min=1, help="Requests at the same time.")]

Family = Annotated[str, typer.Option(help="`gpt2` or `bart`, which have different defaults.")]
FamilyModel = Annotated[
    str | None,
    typer.Option(
        help="A folder, a hub id, or random weights: `gpt2-shape`, `bart-base-shape`,"
        " `bart-large-shape`. By default `gpt2-shape` or `bart-base-shape`."
    ),
]

Sampling = Annotated[
    list[str] | None,
    typer.Option(
        help="`KEY=VALUE`, may be repeated: a sampling parameter for our engine."
        " `logit_bias=1024` biases 1,024 tokens. Sampling takes turns with greedy decoding."
    ),
]
LongestRow = Annotated[int, typer.Option(min=2, help="Tokens of the longest row.")]
Shortest = Annotated[
    int | None,
    typer.Option(min=2, help="Tokens of the shortest row; by default all are equally long."),
]
Targets = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="The share of tokens that are targets.")
]


class _Usual(NamedTuple):
    """The defaults of a family."""

    model: str
    rows: int
    prompt: int
    long_prompts: int


_USUAL = {
    "gpt2": _Usual("gpt2-shape", rows=64, prompt=32, long_prompts=1),
    "bart": _Usual("bart-base-shape", rows=32, prompt=256, long_prompts=8),
}


def _measure(
    run: Callable[..., dict[str, Any]],
    settings: tuple[str, str, int, int],
    *arguments: Any,
    **options: Any,
) -> None:
    """Print the result of a benchmark; `settings` are a model, dtype, rounds and threads."""
    from app.bench.report import print_result
    from app.bench.settings import make_settings

    print_result(run(make_settings(*settings), *arguments, **options))


def _usual(family: str) -> _Usual:
    if family not in _USUAL:
        raise typer.BadParameter(
            f"{family!r} is not a family; choose gpt2 or bart", param_hint="--family"
        )
    return _USUAL[family]


@app.command()
def engine(
    family: Family = "gpt2",
    model: FamilyModel = None,
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="Requests at the same time; by default 64, or 32 for BART."),
    ] = None,
    prefixes: Annotated[int, typer.Option(min=1, help="Distinct prefixes.")] = 8,
    prefix_length: Annotated[int, typer.Option(min=1, help="Positions of each prefix.")] = 20,
    prompt: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of each prompt; by default 32, or 256 for BART."),
    ] = None,
    new: Annotated[int, typer.Option(min=1, help="New tokens of each sequence.")] = 48,
    beams: Annotated[
        int, typer.Option(min=1, help="Beams of each request; 1 means greedy decoding.")
    ] = 1,
    temperature: Annotated[
        float,
        typer.Option(
            min=0.0, max=2.0, help="For our engine only; 0 means greedy decoding, as peers do."
        ),
    ] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="For our engine only.")] = 1.0,
    sampling: Sampling = None,
    dtype: Dtype = "auto",
    peers: Peers = "hf-generate,peft,ctranslate2",
    rounds: Rounds = 3,
    threads: Threads = 0,
) -> None:
    """Measure new tokens per second of a batch with mixed prefixes, including prefill."""
    from app.bench.engine_bench import run_engine
    from app.bench.load import parse_sampling, uniform_load
    from app.bench.peers import expand_peers

    usual = _usual(family)
    given = [f"temperature={temperature}", f"top_p={top_p}", *(sampling or [])]
    names = expand_peers(peers)
    if family == "bart":
        # PEFT supports prefixes in BART's decoder only
        names = [name for name in names if name != "peft"]
    load = uniform_load(
        rows=rows or usual.rows,
        prefixes=prefixes,
        prefix_length=prefix_length,
        prompt=prompt or usual.prompt,
        new=new,
        num_beams=beams,
        sampling=parse_sampling(given),
    )
    _measure(run_engine, (model or usual.model, dtype, rounds, threads), names, load)


@app.command()
def continuous(
    model: Model = "gpt2-shape",
    requests: Annotated[int, typer.Option(min=1, help="Number of requests.")] = 96,
    per_second: Annotated[float, typer.Option(min=0.01, help="Mean arrivals per second.")] = 50.0,
    rows: Rows = 64,
    dtype: Dtype = "auto",
    peers: Peers = "hf-generate,ctranslate2",
    rounds: Rounds = 2,
    threads: Threads = 0,
) -> None:
    """Compare continuous batching at saturation (Poisson arrivals) with static batches."""
    from app.bench.engine_bench import run_continuous
    from app.bench.peers import expand_peers

    _measure(
        run_continuous,
        (model, dtype, rounds, threads),
        expand_peers(peers),
        requests=requests,
        per_second=per_second,
        max_rows=rows,
    )


@app.command()
def stall(
    family: Family = "gpt2",
    model: FamilyModel = None,
    prompts: Annotated[
        int | None,
        typer.Option(min=1, help="Prompts that arrive together; by default 1, or 8 for BART."),
    ] = None,
    dtype: Dtype = "auto",
    threads: Threads = 0,
) -> None:
    """Measure how prompts of 900 tokens slow 16 decoding sequences (p99 time between tokens)."""
    from app.bench.engine_bench import run_stall

    usual = _usual(family)
    settings = (model or usual.model, dtype, 1, threads)
    _measure(run_stall, settings, prompts or usual.long_prompts)


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
    """Measure the load of `engine` through a server on loopback, streamed to another process."""
    from app.bench.http_bench import run_http
    from app.bench.load import uniform_load

    load = uniform_load(
        rows=rows, prefixes=prefixes, prefix_length=prefix_length, prompt=prompt, new=new
    )
    _measure(run_http, (model, dtype, rounds, threads), load)


@app.command()
def prefixes(
    model: Model = "gpt2-shape",
    counts: Annotated[
        str, typer.Option(help="Numbers of distinct prefixes, with commas.")
    ] = "1,10,100,1000",
    length: Annotated[int, typer.Option(min=1, help="Positions of each prefix.")] = 10,
    rows: Rows = 32,
    new: Annotated[int, typer.Option(min=1, help="New tokens of each request.")] = 32,
    dtype: Dtype = "auto",
    threads: Threads = 0,
) -> None:
    """Measure throughput with growing numbers of prefixes, when the device tier holds 100."""
    from app.bench.prefixes_bench import run_prefixes

    numbers = [int(count) for count in counts.split(",")]
    settings = (model, dtype, 1, threads)
    _measure(run_prefixes, settings, counts=numbers, length=length, rows=rows, new=new)


@app.command()
def train(
    model: Model = "gpt2-shape",
    rows: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 10,
    tokens: LongestRow = 64,
    shortest: Shortest = None,
    targets: Targets = 0.5,
    prefix_length: Annotated[int, typer.Option(min=1, help="Positions of the prefix.")] = 10,
    dtype: Dtype = "auto",
    rounds: Rounds = 5,
    threads: Threads = 0,
) -> None:
    """Measure a training step of a prefix (tokens/s, peak memory) beside PEFT's prefix-tuning."""
    from app.bench.train_bench import TrainLoad, run_train

    load = TrainLoad(rows, tokens, prefix_length, targets, shortest)
    _measure(run_train, (model, dtype, rounds, threads), load)


@app.command("train-beside")
def train_beside(
    model: Model = "demo-gpt2",
    rows: Rows = 8,
    new: Annotated[int, typer.Option(min=2, help="New tokens of each request.")] = 64,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of each measurement.")] = 20.0,
    dtype: Dtype = "auto",
    rounds: Rounds = 3,
) -> None:
    """Measure what requests and a training job in the server's worker cost each other.

    A closed load runs with and without the job; the goals are 1.15 times the mean time between
    tokens, twice its 99th percentile, and a tenth of the job's speed without requests.
    """
    from app.bench.load import uniform_load
    from app.bench.train_beside_bench import run_train_beside
    from app.cli.configuration import base_model

    load = uniform_load(rows=rows, prefixes=2, prefix_length=5, prompt=32, new=new)
    _measure(run_train_beside, (base_model(model), dtype, rounds, 0), load, seconds)


@app.command("train-many")
def train_many(
    model: Model = "gpt2-shape",
    jobs: Annotated[int, typer.Option(min=1, help="Jobs, with one row each in a step.")] = 32,
    tokens: LongestRow = 32,
    shortest: Shortest = None,
    targets: Targets = 0.5,
    prefix_length: Annotated[int, typer.Option(min=1, help="Positions of each prefix.")] = 5,
    dtype: Dtype = "auto",
    rounds: Rounds = 5,
    threads: Threads = 0,
) -> None:
    """Measure a step of many training jobs in one pass, and one job after another: PEFT, ours."""
    from app.bench.train_bench import TrainLoad
    from app.bench.train_many import run_train_many

    load = TrainLoad(jobs, tokens, prefix_length, targets, shortest)
    _measure(run_train_many, (model, dtype, rounds, threads), load)


@app.command()
def evaluate(
    model: Model = "gpt2-shape",
    inputs: Annotated[int, typer.Option(min=1, help="Inputs to answer.")] = 80,
    longest: Annotated[int, typer.Option(min=1, help="Tokens of the longest input.")] = 64,
    new: Annotated[int, typer.Option(min=1, help="New tokens of an answer, at most.")] = 40,
    beams: Annotated[int, typer.Option(min=1, help="Beams of each input.")] = 5,
    prefix_length: Annotated[int, typer.Option(min=1, help="Positions of the prefix.")] = 10,
    dtype: Dtype = "auto",
    rounds: Rounds = 1,
    threads: Threads = 0,
) -> None:
    """Measure decoding by beams as `polyprefix evaluate` does it, and one input after another."""
    from app.bench.evaluate_bench import EvaluationLoad, run_evaluate
    from app.cli.configuration import base_model

    load = EvaluationLoad(inputs, longest, new, beams, prefix_length)
    _measure(run_evaluate, (base_model(model), dtype, rounds, threads), load)


@app.command()
def catalog(
    names: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Prefixes of one tenant.")
    ] = 100_000,
) -> None:
    """Measure the cost of resolving a name when a tenant has very many; needs no model."""
    from app.bench.catalog_bench import run_catalog
    from app.bench.report import print_result

    print_result(run_catalog(names=names))
