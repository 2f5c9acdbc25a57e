"""`polyprefix experiment` end to end on a tiny model: rows, figures, tables, interruptions."""

from __future__ import annotations

import json
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from app.cli import app
from app.errors import InvalidRequest
from app.experiments.execution import Executor
from app.experiments.results import ResultsFile
from app.training.trainer import Trainer

Run = Callable[..., Result]
WORDS = ("fox", "dog", "cat", "owl", "hen", "cow", "pig", "bee", "ant", "elk", "emu", "asp")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "experiments"


@pytest.fixture
def run(tiny_gpt2_folder: Path, tmp_path: Path, out: Path) -> Run:
    """`polyprefix experiment NAME` with one step a run; by default a grid of two lengths."""
    data = tmp_path / "e2e.jsonl"
    rows = [
        {"input": f"name : {w}", "targets": [f"the {w}", f"a {w}"], "category": w[-1]}
        for w in WORDS
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def running(name: str = "prefix-length", *more: str) -> Result:
        arguments = ["experiment", name, "--model", str(tiny_gpt2_folder), "--data", str(data)]
        arguments += ["--out", str(out), "--seeds", "1", "--steps", "2", "--test-inputs", "2"]
        scored = [] if name == "rates" else ["--metrics", "bleu,rougeL"]
        arguments += ["--device", "cpu", *scored, *more]
        return CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})

    return running


@pytest.fixture
def two_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid is cut to its first two runs."""
    from app.experiments import grids

    whole = grids.GridOptions.finished
    monkeypatch.setattr(
        grids.GridOptions, "finished", lambda self, runs, seeds: whole(self, runs[:2], seeds)
    )


@pytest.mark.usefixtures("two_lengths")
def test_a_grid_ends_with_rows_a_table_and_figures(run: Run, out: Path) -> None:
    done = run()
    assert done.exit_code == 0, done.output
    folder = out / "prefix-length"
    rows = ResultsFile(folder / "results.csv").read()
    assert [(row.length, row.steps, row.error) for row in rows] == [(1, 2, ""), (5, 2, "")]
    assert all(0 <= row.scores["bleu"] <= 100 and row.last_loss for row in rows)
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    drawing = xml.etree.ElementTree.parse(folder / "figure.svg").getroot()
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    page = (folder / "table.md").read_text(encoding="utf-8")
    assert "| BLEU | BLEU (paper) |" in page
    (of_the_papers_length,) = [line for line in page.splitlines() if "| prefix | 5 |" in line]
    assert "| 70.3 |" in of_the_papers_length
    (chosen,) = json.loads((out / "chosen.json").read_text(encoding="utf-8")).values()
    best = min(rows, key=lambda row: row.development_loss or 0.0)
    assert chosen["length"] == best.length
    assert chosen["evidence"]["prefix-length"]["development_loss"] == pytest.approx(
        best.development_loss, abs=1e-3
    )
    assert {row.data_size for row in rows} == {18}  # of 20 pairs, those of one input are held out
    assert not list(folder.glob("*.checkpoint"))


@pytest.mark.usefixtures("two_lengths")
def test_an_interrupted_grid_goes_on_and_repeats_nothing(
    run: Run, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Executor.run
    ran: list[int] = []

    def interrupted(self: Executor, settings, report):  # type: ignore[no-untyped-def]
        if settings.length == 5:
            raise KeyboardInterrupt
        ran.append(settings.length)
        return whole(self, settings, report)

    with monkeypatch.context() as patch:
        patch.setattr(Executor, "run", interrupted)
        stopped = run()
    assert stopped.exit_code == 130, stopped.output
    assert "the same command goes on" in stopped.output
    assert "| prefix | 1 |" in (out / "prefix-length" / "table.md").read_text(encoding="utf-8")
    assert not (out / "chosen.json").exists()
    results = ResultsFile(out / "prefix-length" / "results.csv")
    first = results.read()
    assert ran == [1]
    assert [row.length for row in first] == [1]
    assert run().exit_code == 0
    assert results.read()[:1] == first
    assert [row.length for row in results.read()] == [1, 5]
    assert run().exit_code == 0
    assert len(results.read()) == 2


@pytest.mark.usefixtures("two_lengths")
def test_a_run_continues_within_itself(
    run: Run, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    whole = Trainer.run

    def until_killed(self: Trainer, report):  # type: ignore[no-untyped-def]
        whole(self, report, until=1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", until_killed)
        assert run().exit_code == 130
    assert len(list((out / "prefix-length").glob("*.checkpoint"))) == 1

    def counted(self: Trainer, report):  # type: ignore[no-untyped-def]
        steps.append(self.step)
        whole(self, report)

    monkeypatch.setattr(Trainer, "run", counted)
    assert run().exit_code == 0
    assert steps == [1, 0]


@pytest.mark.usefixtures("two_lengths")
def test_a_failing_run_has_a_row_and_the_rest_goes_on(
    run: Run, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Executor.run

    def failing(self: Executor, settings, report):  # type: ignore[no-untyped-def]
        if settings.length == 1:
            raise InvalidRequest("the loss became nan at step 1")
        return whole(self, settings, report)

    with monkeypatch.context() as patch:
        patch.setattr(Executor, "run", failing)
        done = run()
    assert done.exit_code == 1, done.output
    assert "1 of 2 runs have failed" in done.output
    results = ResultsFile(out / "prefix-length" / "results.csv")
    assert [row.error for row in results.read()] == ["the loss became nan at step 1", ""]
    page = (out / "prefix-length" / "table.md").read_text(encoding="utf-8")
    assert "the loss became nan" in page
    assert run().exit_code == 0
    assert [row.error for row in results.read()] == ["the loss became nan at step 1", "", ""]


@pytest.mark.usefixtures("two_lengths")
def test_little_data_draw_lines_and_first_values_draw_bars(run: Run, out: Path) -> None:
    for name in ("low-data", "initialisation", "data-size"):
        done = run(name)
        assert done.exit_code == 0, done.output
        assert (out / name / "figure.svg").stat().st_size > 1000
        assert len(ResultsFile(out / name / "results.csv").read()) == 2
    assert not (out / "chosen.json").exists()


def test_held_out_categories_are_scored_apart(run: Run, out: Path) -> None:
    asked = ("--task", "webnlg", "--hold-out", "category=t,x,g", "--methods", "prefix")
    done = run("extrapolation", *asked)
    assert done.exit_code == 0, done.output
    (row,) = ResultsFile(out / "extrapolation" / "results.csv").read()
    assert {"bleu", "rougeL", "unseen_bleu", "unseen_slot_errors"} <= row.scores.keys()
    page = (out / "extrapolation" / "table.md").read_text(encoding="utf-8")
    assert "| BLEU, unseen | BLEU, unseen (paper) |" in page
    assert "| 45.3 |" in page


def test_a_dry_run_lists_the_runs_with_their_time(run: Run, out: Path) -> None:
    done = run("prefix-length", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "length 40" in done.output
    assert "10 runs, about" in done.output
    assert not (out / "prefix-length" / "results.csv").exists()


def test_an_unknown_experiment_is_refused(run: Run) -> None:
    done = run("width")
    assert done.exit_code == 1
    assert "there is no experiment 'width'; the experiments are prefix-length" in done.output


def test_methods_that_give_no_prefix_are_scored_too(run: Run, out: Path) -> None:
    done = run("baselines", "--methods", "prefix,finetune,adapter-3%,infix")
    assert done.exit_code == 0, done.output
    rows = ResultsFile(out / "baselines" / "results.csv").read()
    assert [row.method for row in rows] == ["prefix", "finetune", "adapter-3%", "infix"]
    assert all("bleu" in row.scores and row.last_loss for row in rows)
    assert [row.length for row in rows] == [10, 0, 0, 10]
    page = (out / "baselines" / "table.md").read_text(encoding="utf-8")
    (of_finetuning,) = [line for line in page.splitlines() if "| finetune |" in line]
    assert "| 68.8 |" in of_finetuning


def test_rates_are_chosen_by_the_loss_and_used_by_other_experiments(run: Run, out: Path) -> None:
    done = run("rates", "--methods", "prefix,finetune")
    assert done.exit_code == 0, done.output
    rows = ResultsFile(out / "rates" / "results.csv").read()
    assert len(rows) == 8
    assert not any(row.scores for row in rows)
    (chosen,) = json.loads((out / "chosen.json").read_text(encoding="utf-8")).values()
    for method in ("prefix", "finetune"):
        mine = [row for row in rows if row.method == method]
        best = min(mine, key=lambda row: row.development_loss or 0.0)
        assert chosen["rates"][method] == best.lr
    assert run("ablation", "--methods", "prefix").exit_code == 0
    used = ResultsFile(out / "ablation" / "results.csv").read()
    assert {row.lr for row in used} == {chosen["rates"]["prefix"]}
    assert run("prefix-length").exit_code == 0
    lengths = ResultsFile(out / "prefix-length" / "results.csv").read()
    assert {row.lr for row in lengths} == {chosen["rates"]["prefix"]}
    assert [row.length for row in lengths] == [1, 5, 10, 20, 40]


@pytest.mark.parametrize(
    ("name", "option", "value", "why"),
    [
        ("prefix-length", "--methods", "lora", "it trains prefixes alone"),
        ("initialisation", "--methods", "lora", "it trains prefixes alone"),
        ("baselines", "--hold-out", "category=x", "it holds no values out"),
        ("ablation", "--users", "category", "it has no users"),
        ("rates", "--metrics", "bleu", "it compares losses"),
    ],
)
def test_an_option_that_does_nothing_is_refused_by_name(
    run: Run, name: str, option: str, value: str, why: str
) -> None:
    done = run(name, option, value)
    assert done.exit_code == 1
    said = f"{option}: `{name}` does not use it, because {why}; leave it out"
    assert said in " ".join(done.output.split())


def test_an_unknown_method_is_refused(run: Run) -> None:
    done = run("baselines", "--methods", "prefix,magic")
    assert done.exit_code == 1
    said = " ".join(done.output.split())
    assert "there is no 'magic'; choose one of prefix, prefix-direct" in said
    assert said.rstrip().endswith("lora, adapter-3%, adapter-0.1%")
