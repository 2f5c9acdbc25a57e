"""The grids: the paper's at its scale, about an hour of work at the small one."""

from __future__ import annotations

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
from app.experiments.tasks import EXPERIMENT_TASKS, task_named


def options(scale: Scale, task: str = "e2e", pairs: int = 4000, **more: int) -> GridOptions:
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
