"""Options of `polyprefix train` that choose the method and how it is optimised."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from app.cli.evaluation import data_options as given
from app.cli.prefix.named_file import prefix_file

if TYPE_CHECKING:
    from app.datasets.reader import ReadOptions
    from app.datasets.splits import Selection

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
"""Where a trained prefix goes."""

_READING = ("data_format", "input_column", "target_column", "split", "valid_split")
_NO_RECIPE = (*_READING, "subset", "subset_seed", "hold_out", "on", "choices", "log_dir")


@dataclass(frozen=True)
class MethodOptions:
    """The method and its settings, named as in `app.training.recipe.Recipe`."""

    method: Annotated[
        str,
        typer.Option(
            help="What is trained: prefix, prefix-direct, embedding, infix, finetune,"
            " finetune-top2, adapter, lora; peft or peft-projection for PEFT's own prefix. Only"
            " the first three and PEFT's give a prefix to serve."
        ),
    ] = "prefix"
    preset: Annotated[
        str,
        typer.Option(
            "--recipe",
            help="`full-data`, or `low-data`: the authors' settings for 50 to 500 pairs.",
        ),
    ] = "full-data"
    depth: Annotated[int, typer.Option(help="Hidden layers of the networks: 1 or 2.")] = 1
    prefix_dropout: Annotated[
        float, typer.Option(help="Share of the prefix's keys and values dropped in a step.")
    ] = 0.0
    label_smoothing: Annotated[
        float, typer.Option(help="Share of each target spread over the vocabulary.")
    ] = 0.0
    accumulate: Annotated[int, typer.Option(help="Batches that make one optimiser step.")] = 1
    clip_norm: Annotated[
        float, typer.Option(help="Norm to which a larger gradient is scaled down.")
    ] = 1.0
    dtype: Annotated[str, typer.Option(help="`fp32`, or `bf16` for the model's products.")] = "fp32"
    gradient_checkpointing: Annotated[
        bool, typer.Option(help="Compute layers twice to save memory.")
    ] = False
    initial_prefix: Annotated[
        Path | None, typer.Option("--init-prefix", help="Start from this prefix file.")
    ] = None
    initial_task_mean: Annotated[
        bool,
        typer.Option(
            "--init-task-mean",
            help="Start from the mean of the keys and values of the prefix that `--on` names.",
        ),
    ] = False
    on: Annotated[
        str | None,
        typer.Option(
            help="Train behind this prefix, which does not change: a file, or a name in `--store`"
            " such as `support` or `support@stable`. Requests then name both: `support+alice`."
        ),
    ] = None
    metric: Annotated[
        str,
        typer.Option(
            help="What selects the best state on held-out data: `loss`, or a score of answers:"
            " `bleu`, `rouge_l`, or `slots` (how many say all values of their input)."
        ),
    ] = "loss"
    early_stopping: Annotated[
        int, typer.Option(help="End after so many validations without a better one (0: never).")
    ] = 0
    validation_pairs: Annotated[
        int,
        typer.Option(
            help="Held-out pairs that select the best state by their loss, or inputs by `--metric`"
            " (0: all of them)."
        ),
    ] = 128
    adapter_share: Annotated[
        float, typer.Option(help="Size of the adapters as a share of the model's parameters.")
    ] = 0.03
    lora_rank: Annotated[int, typer.Option(help="Rank of LoRA's updates.")] = 8
    lora_alpha: Annotated[float, typer.Option(help="Scale of LoRA's updates: alpha / rank.")] = 16.0
    lora_targets: Annotated[
        str | None,
        typer.Option(
            help="Names of the projections for LoRA, with commas; by default c_attn for GPT-2, else"
            " q_proj,v_proj."
        ),
    ] = None
    data_format: given.Format = None
    input_column: given.InputColumn = None
    target_column: given.TargetColumns = None
    split: given.Split = None
    valid_split: Annotated[
        str | None,
        typer.Option(
            help="Split of `--valid`, or of `--data` if there is no `--valid`; by default that of"
            " `--split`."
        ),
    ] = None
    subset: Annotated[int | None, typer.Option(help="Train on so many pairs, drawn at random.")] = (
        None
    )
    subset_seed: Annotated[int, typer.Option(help="Seed of the subset.")] = 101
    hold_out: Annotated[
        str | None,
        typer.Option(
            help="What is never trained on, as `category=Astronaut,Airport` or `webnlg-unseen`; it"
            " is the held-out data if there is no --valid."
        ),
    ] = None
    choices: Annotated[
        Path,
        typer.Option(
            help="Rates and lengths that `polyprefix experiment` has chosen for base models, used"
            " where you give none."
        ),
    ] = Path("experiments/chosen.json")
    log_dir: Annotated[
        Path | None, typer.Option(help="Folder for TensorBoard logs of loss, rate and scores.")
    ] = None

    def of_job(self, store: Path | None) -> dict[str, Any]:
        """Fields of a training job: the prefix to train on, the data's form and part, choices."""
        return {
            "on": None if self.on is None else prefix_file(self.on, store),
            "reading": self.reading,
            "valid_split": self.valid_split,
            "selection": self.selection,
            "choices": self.choices,
        }

    @property
    def reading(self) -> ReadOptions:
        """How the files of data are read."""
        columns = (self.input_column, self.target_column)
        return given.read_options(self.data_format, *columns, self.split)

    @property
    def reading_arguments(self) -> list[str]:
        """The options for `polyprefix evaluate` to read the held-out data, or else the data."""
        named = [
            ("--format", self.data_format),
            ("--input-column", self.input_column),
            *(("--target-column", name) for name in self.target_column or ()),
            ("--split", self.valid_split or self.split),
        ]
        return [word for flag, value in named if value is not None for word in (flag, value)]

    @property
    def selection(self) -> Selection:
        """The part of the data to train on. InvalidRequest if `--hold-out` is not understood."""
        from app.datasets.splits import HoldOut, Selection

        apart = None if self.hold_out is None else HoldOut.parse(self.hold_out)
        return Selection(self.subset, self.subset_seed, apart)

    def settings(self) -> dict[str, Any]:
        """The settings as fields of a recipe."""
        made = asdict(self)
        for name in _NO_RECIPE:
            del made[name]
        targets = self.lora_targets.split(",") if self.lora_targets else ()
        made["lora_targets"] = tuple(target.strip() for target in targets)
        made["initial_prefix"] = str(self.initial_prefix) if self.initial_prefix else None
        return made


def with_method_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the fields of `MethodOptions` to a command, which gets them as its first argument."""

    @wraps(command)
    def run(**given: Any) -> None:
        own = {field.name: given.pop(field.name) for field in fields(MethodOptions)}
        command(MethodOptions(**own), **given)

    _, *others = inspect.signature(command, eval_str=True).parameters.values()
    hints = get_type_hints(MethodOptions, include_extras=True)
    added = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(MethodOptions)
    ]
    others = [other.replace(kind=inspect.Parameter.KEYWORD_ONLY) for other in others]
    parameters = [*others, *added]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    del run.__wrapped__
    return run
