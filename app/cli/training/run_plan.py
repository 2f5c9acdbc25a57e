"""From the options of `polyprefix train` to a run whose names and places are checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.configuration import base_model, check_folder, check_output
from app.cli.training.options import MethodOptions
from app.errors import InvalidRequest

if TYPE_CHECKING:
    from app.training.recipe import Recipe
    from app.training.session import TrainingJob


@dataclass(frozen=True)
class RunPlan:
    """A training job, and where its result goes: to a file, a store or both."""

    job: TrainingJob
    name: str
    store: Path | None
    out: Path | None
    alias: str | None
    log_dir: Path | None

    @property
    def trained_file(self) -> Path:
        """The file for what is no prefix."""
        return self.out or Path(f"{self.name}.safetensors")


def plan_run(chosen: MethodOptions, options: Mapping[str, Any]) -> RunPlan:
    """The run that the options ask for; `options` are those of `train` besides the method's.

    Raises InvalidRequest for a name that no prefix can have and for a place that cannot be written.
    """
    from app.prefix.metadata import parse_decoding
    from app.training.session import TrainingJob

    name, store, out = options["name"], options["store"], options["out"]
    _check_names(name, options["alias"])
    place = options["checkpoint"] or Path(f"{name}.checkpoint")
    if store is None and out is None:
        out = Path(f"{name}.safetensors")
    _check_places(store, out, place, chosen.method)
    job = TrainingJob(
        model=base_model(options["model"]),
        data=options["data"],
        recipe=_recipe({**options, **chosen.settings()}),
        checkpoint=place,
        valid=_valid(chosen, options),
        template=options["template"],
        decoding={"max_tokens": options["max_tokens"], **parse_decoding(options["decoding"])},
        device=options["device"],
        checkpoint_every=options["checkpoint_every"],
        note=options["note"],
        **chosen.of_job(store),
    )
    return RunPlan(job, name, store, out, options["alias"], chosen.log_dir)


def _valid(chosen: MethodOptions, options: Mapping[str, Any]) -> Path | None:
    """The held-out data; `--valid-split` alone names a part of `--data`."""
    valid: Path | None = options["valid"]
    return options["data"] if valid is None and chosen.valid_split is not None else valid


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


def _check_store(method: str, store: Path | None) -> None:
    from app.training.methods.names import PREFIX_METHODS, check_method

    check_method(method)
    if store is not None and method not in PREFIX_METHODS:
        raise InvalidRequest(
            f"--store: a store holds prefixes, and --method {method} gives none; use --out"
        )


def _check_names(name: str, alias: str | None) -> None:
    from app.prefix.reference import check_alias, check_name

    check_name(name)
    if alias is not None:
        check_alias(alias)


def _check_places(store: Path | None, out: Path | None, checkpoint: Path, method: str) -> None:
    _check_store(method, store)
    check_output(out, "--out")
    check_output(checkpoint, "--checkpoint")
    if store is not None:
        check_folder(store, "--store")
