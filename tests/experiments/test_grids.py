"""The grids: the paper's at its scale, about an hour of work at the small one."""

from __future__ import annotations

from typing import Any

import pytest

from app.errors import InvalidRequest
from app.experiments.grids import (
    EXPERIMENTS,
    INITIAL_WORDS,
    GridOptions,
    Scale,
    experiment_named,
    scale_named,
)
from app.experiments.tasks import EXPERIMENT_TASKS, NEWS_TO_SPORTS, WITHIN_NEWS, task_named


def options(scale: Scale, task: str = "e2e", pairs: int = 4000, **more: Any) -> GridOptions:
    return GridOptions(scale, EXPERIMENT_TASKS[task], pairs, 3e-3, ("bleu",), **more)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("scale", Scale)
@pytest.mark.parametrize("task", EXPERIMENT_TASKS)
def test_no_run_is_in_a_grid_twice(name: str, scale: Scale, task: str) -> None:
    runs = experiment_named(name).runs(options(scale, task))
    assert runs
    assert len(runs) == len({run.digest({}) for run in runs})
    assert all(run.experiment == name for run in runs)
    for run in runs:
        run.recipe().check()


def test_prefix_lengths_of_the_paper_have_its_settings() -> None:
    runs = experiment_named("prefix-length").runs(options(Scale.PAPER, "xsum"))
    assert {run.length for run in runs} == {1, 10, 20, 50, 80, 100, 200, 300}
    assert {(run.lr, run.epochs, run.batch_size) for run in runs} == {(5e-5, 30, 14)}


def test_the_ablation_has_the_papers_own_prefix() -> None:
    for scale in Scale:
        runs = experiment_named("ablation").runs(options(scale, seeds=1))
        prefixes = [run.length for run in runs if run.method == "prefix"]
        assert prefixes == [1, 5, 10, 20]
        assert {run.length for run in runs if run.method == "infix"} == {1, 10, 20}
    of_summaries = experiment_named("ablation").runs(options(Scale.SMALL, "xsum"))
    assert max(run.length for run in of_summaries) == 20


def test_summaries_of_the_paper_have_a_prefix_of_a_tenth_of_a_percent() -> None:
    runs = experiment_named("baselines").runs(options(Scale.PAPER, "xsum", seeds=1))
    assert [run.length for run in runs if run.method == "prefix"] == [100, 5]
    assert {(run.lr, run.epochs, run.batch_size) for run in runs if run.method == "prefix"} == {
        (5e-5, 30, 14)
    }


@pytest.mark.parametrize(
    ("part", "of_prefix"), [(WITHIN_NEWS, (80, 30, 36)), (NEWS_TO_SPORTS, (40, 15, 36))]
)
def test_held_out_news_have_the_papers_settings(part: str, of_prefix: tuple[int, int, int]) -> None:
    asked = options(Scale.PAPER, "xsum", methods=("prefix", "finetune"), seeds=1, held_out=part)
    prefix, finetune = experiment_named("extrapolation").runs(asked)
    assert (prefix.length, prefix.epochs, prefix.batch_size) == of_prefix
    assert (prefix.lr, finetune.lr) == (5e-5, 3e-5)
    assert (finetune.epochs, finetune.batch_size) == (5, 18)


def test_little_data_of_the_paper_are_5_subsets_with_2_seeds() -> None:
    runs = experiment_named("low-data").runs(options(Scale.PAPER))
    prefix = [run for run in runs if run.method == "prefix"]
    assert len(prefix) == 4 * 5 * 2
    assert {run.data_size: run.max_steps for run in prefix} == {
        50: 200,
        100: 200,
        200: 200,
        500: 400,
    }
    assert {run.development for run in prefix} == {15, 30, 60, 150}
    assert {(run.length, run.words) for run in prefix} == {(6, "table-to-text:")}


@pytest.mark.parametrize(
    ("task", "method", "batch_size", "amounts"),
    [
        ("e2e", "finetune", 10, [100, 100, 200, 400]),
        ("e2e", "adapter-3%", 10, [100, 100, 200, 400]),
        ("e2e", "prefix", 10, [200, 200, 200, 400]),
        ("xsum", "finetune", 6, [30, 10, 3, 3]),
        ("xsum", "prefix", 5, [30, 20, 20, 20]),
    ],
)
def test_little_data_have_the_papers_steps_or_epochs_of_the_method(
    task: str, method: str, batch_size: int, amounts: list[int]
) -> None:
    asked = options(Scale.PAPER, task, methods=(method,), seeds=1)
    runs = [run for run in experiment_named("low-data").runs(asked) if not run.subset_seed]
    assert [run.max_steps or run.epochs for run in runs] == amounts
    assert all(bool(run.max_steps) == (task == "e2e") for run in runs)
    assert {(run.batch_size, run.lr, run.warmup_steps) for run in runs} == {(batch_size, 5e-5, 100)}


def test_little_data_are_cut_to_what_there_is() -> None:
    runs = experiment_named("initialisation").runs(options(Scale.SMALL, pairs=65))
    assert {(run.data_size, run.development) for run in runs} == {(50, 15)}
    assert {run.words for run in runs} == set(INITIAL_WORDS)


def test_the_small_scale_varies_the_rate_around_the_models_own() -> None:
    runs = experiment_named("prefix-length").runs(options(Scale.SMALL, seeds=1, steps=7))
    assert [(run.length, run.lr) for run in runs[:5]] == [(n, 1e-3) for n in (1, 5, 10, 20, 40)]
    assert {run.lr for run in runs[5:]} == {3e-3}
    assert {run.max_steps for run in runs} == {7}


def test_what_is_unknown_is_refused_with_what_is_known() -> None:
    with pytest.raises(InvalidRequest, match="no experiment 'width'; the experiments are prefix-l"):
        experiment_named("width")
    with pytest.raises(InvalidRequest, match="no scale 'huge'; give `small` or `paper`"):
        scale_named("huge")
    with pytest.raises(InvalidRequest, match="no task 'poems'; give --task with one of e2e"):
        task_named("poems", ())


def test_the_data_path_names_the_task() -> None:
    assert task_named(None, ("/", "data", "WebNLG", "dev.jsonl")).name == "webnlg"
    with pytest.raises(InvalidRequest, match="the data's path names no task"):
        task_named(None, ("/", "e2e", "other", "dev.jsonl"))
