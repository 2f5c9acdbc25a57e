"""Where a prefix may start: real words, another prefix, or the mean of the one it stands behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import torch

from app.errors import InvalidRequest
from app.model.attention import RecordingPlan
from app.model.dense import keys_values_of
from app.model.frozen import FrozenModel
from app.prefix.codec import decode
from app.prefix.prefix import KeyValues, Prefix
from app.training.recipe import MAX_LENGTH, Recipe

_MEAN_NOISE = 0.1


def complete_recipe(
    model: FrozenModel, recipe: Recipe, num_pairs: int, *, has_validation: bool = True
) -> Recipe:
    """The recipe with every setting that is not given, for `model` and so many training pairs."""
    recipe.check()
    modules, size = model.spec.modules, model.num_parameters
    made = recipe.for_model(modules, size, num_pairs, has_validation=has_validation)
    if made.length:
        return made
    return replace(made, length=len(words_token_ids(model, made.initial_words or "", 0)))


def words_token_ids(model: FrozenModel, words: str, length: int) -> list[int]:
    """The tokens of ` words`, cut to `length` or repeated. Length 0 means their own number."""
    token_ids = model.text.render(" {input}", words)
    if not token_ids:
        raise InvalidRequest("initial_words has no tokens; give some words")
    if length == 0 and len(token_ids) > MAX_LENGTH:
        raise InvalidRequest(
            f"initial_words has {len(token_ids)} tokens, but a prefix has at most {MAX_LENGTH}"
            " positions; shorten the text or give a length"
        )
    return list(islice(cycle(token_ids), length or len(token_ids)))


def read_prefix(path: Path, model: FrozenModel) -> Prefix:
    """The prefix in a file, in single precision. Raises what `decode` raises."""
    return decode(path.resolve(), model.spec, torch.float32, max_length=model.spec.context_limit)


def initial_keys_values(
    model: FrozenModel, recipe: Recipe, on: Prefix | None = None
) -> dict[str, KeyValues]:
    """The keys and values that the recipe names, by module: of its words, its file or `on`.

    Behind the prefix `on` the model reads the words there. Raises InvalidRequest if a module has no
    such start.
    """
    if recipe.initial_task_mean:
        return _task_mean(on, recipe)
    if recipe.initial_prefix is not None:
        return _of_file(model, recipe.initial_prefix, recipe)
    words = words_keys_values(model, recipe.initial_words or "", recipe.positions, on)
    return {name: words[name] for name in recipe.modules}


def words_keys_values(
    model: FrozenModel, words: str, length: int, on: Prefix | None = None
) -> dict[str, KeyValues]:
    """The model's keys and values for ` words`, by module; read behind the prefix `on`, if any.

    Without an encoder they are those of the decoder (Li & Liang 2021, §4.3). With an encoder, the
    encoder reads the words, framed by its tokenizer and cut or repeated to `length`: that run gives
    the encoder's keys and values and those of cross-attention. The decoder then writes the same
    words, which gives its own. The authors' code has no such start for BART.
    """
    token_ids = words_token_ids(model, words, length)
    if model.encoder_decoder is None:
        return {"decoder": keys_values_of(model, token_ids, on=on)}
    source = list(islice(cycle(model.text.encode(words)), len(token_ids)))
    plan = RecordingPlan() if on is None else RecordingPlan(on.modules)
    with torch.no_grad():
        model.encoder_decoder.teach(
            torch.tensor([source], device=model.device),
            torch.tensor([token_ids], device=model.device),
            plan,
            position_offset=0 if on is None else on.metadata.position_offset,
        )
    return plan.recorded()


def _of_file(model: FrozenModel, name: str, recipe: Recipe) -> dict[str, KeyValues]:
    """The keys and values of a prefix file; its positions are cut or repeated to the length."""
    prefix = read_prefix(Path(name), model)
    _check_modules(prefix, name, recipe)
    return {module: _fitted(prefix.modules, module, recipe.positions) for module in recipe.modules}


def _task_mean(on: Prefix | None, recipe: Recipe) -> dict[str, KeyValues]:
    """The mean of the task's keys and values over its positions, with a little noise.

    Without noise all positions would be equal and get equal gradients. Its deviation is
    `_MEAN_NOISE` of that over the task's positions, or of the values where there is one position.
    """
    if on is None:
        raise InvalidRequest("initial_task_mean: it needs a prefix to train on; give one as `on`")
    _check_modules(on, "the prefix to train on", recipe)
    generator = torch.Generator().manual_seed(recipe.seed)

    def spread(task: torch.Tensor) -> torch.Tensor:
        task = task.float()
        mean = task.mean(dim=2, keepdim=True)
        deviation = (task - mean if task.shape[2] > 1 else task).square().mean().sqrt()
        size = (*task.shape[:2], recipe.positions, task.shape[3])
        noise = torch.randn(size, generator=generator).to(task.device)
        return mean + _MEAN_NOISE * deviation * noise

    return {
        name: KeyValues(spread(on.modules[name].keys), spread(on.modules[name].values))
        for name in recipe.modules
    }


def _check_modules(prefix: Prefix, name: str, recipe: Recipe) -> None:
    missing = [module for module in recipe.modules if module not in prefix.modules]
    if missing:
        raise InvalidRequest(
            f"{name} has no keys and values for {', '.join(missing)}; leave these out of `modules`"
        )


def _fitted(modules: Mapping[str, KeyValues], name: str, length: int) -> KeyValues:
    made = modules[name]
    places = torch.arange(length) % made.length
    return KeyValues(made.keys[:, :, places], made.values[:, :, places])
