"""`polyprefix bench …` on a tiny model: its table and its last line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from app.bench.evaluate_bench import (
    EngineDecoder,
    EvaluationLoad,
    PlainDecoder,
    run_evaluate,
)
from app.bench.load import Item, Load, parse_sampling
from app.bench.measure import percentile
from app.bench.peers import PEERS, expand_peers
from app.bench.report import print_result, with_ratios
from app.bench.settings import make_settings
from app.bench.train_bench import TrainLoad
from app.cli import app
from app.errors import InvalidRequest

SMALL = ("--dtype", "float32", "--rounds", "1", "--threads", "1")


def bench(kind: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """The JSON object in the last line of `polyprefix bench KIND`."""
    done = CliRunner().invoke(app, ["bench", kind, "--model", str(folder), *arguments])
    assert done.exit_code == 0, done.output
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result["bench"] == kind
    assert result["ours"]["tokens_per_s"] > 0
    return result


def test_engine_compares_us_with_every_peer(folder: Path) -> None:
    sizes = ("--rows", "4", "--prefixes", "2", "--prefix-length", "3", "--prompt", "5")
    result = bench("engine", folder, *SMALL, *sizes, "--new", "4")
    assert set(result["ratio"]) == set(result["peers"]) == set(PEERS)
    for name, ratio in result["ratio"].items():
        quotient = result["ours"]["tokens_per_s"] / result["peers"][name]["tokens_per_s"]
        assert ratio == pytest.approx(quotient, rel=0.05)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_model_with_an_encoder_is_compared_greedily_and_by_beams(
    bart_folder: Path, beams: int
) -> None:
    sizes = ("--rows", "4", "--prefixes", "2", "--prefix-length", "3", "--prompt", "5")
    family = ("--family", "bart", "--beams", str(beams))
    result = bench("engine", bart_folder, *SMALL, *family, *sizes, "--new", "4")
    assert set(result["peers"]) == {"hf-generate", "ctranslate2-float32", "ctranslate2-int8"}
    assert result["ours"]["kv_mb"] > 0


def test_sampling_is_measured_in_turns_with_greedy_decoding(folder: Path) -> None:
    sizes = ("--rows", "4", "--prefixes", "2", "--prefix-length", "3", "--prompt", "5")
    options = ("--temperature", "1", "--top-p", "0.95")
    more = ("--sampling", "logit_bias=64", "--sampling", "no_repeat_ngram_size=2")
    result = bench("engine", folder, *SMALL, *sizes, "--new", "6", "--peers", "", *options, *more)
    ours = result["ours"]
    quotient = ours["decode_step_ms"] / ours["greedy_decode_step_ms"]
    assert ours["decode_step_ratio"] == pytest.approx(quotient, rel=0.05)
    assert result["peers"] == {}


@pytest.mark.parametrize("option", ["tempratur=1", "top_k=many", "top_k", "beam=3"])
def test_an_unknown_sampling_option_is_named(option: str) -> None:
    with pytest.raises(InvalidRequest, match=option.partition("=")[0]):
        parse_sampling([option])


def test_sampling_options_become_sampling_parameters() -> None:
    options = parse_sampling(["logit_bias=3", "top_k=40", "min_p=0.1", "logprobs=5"])
    assert len(options.pop("logit_bias")) == 3
    assert options == {"top_k": 40, "min_p": 0.1, "logprobs": 5}


def test_an_unknown_family_is_named(folder: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "engine", "--family", "t5", "--model", str(folder)])
    assert done.exit_code == 2
    assert "not a family; choose gpt2 or bart" in " ".join(done.output.replace("│", " ").split())


def test_http_streams_every_token_to_another_process(folder: Path) -> None:
    sizes = ("--rows", "3", "--prefixes", "2", "--prefix-length", "3", "--prompt", "5")
    result = bench("http", folder, *SMALL, *sizes, "--new", "6")
    ours = result["ours"]
    assert 0 < ours["first_token_p50_ms"] <= ours["first_token_p99_ms"]
    assert 0 <= ours["inter_token_p50_ms"] <= ours["inter_token_p99_ms"]
    assert 0 < ours["client_share_of_machine"] < 1
    assert set(result["ratio"]) == {"engine"}


def test_prefixes_reports_the_throughput_of_each_count(folder: Path) -> None:
    sizes = ("--counts", "1,60", "--length", "3", "--rows", "4", "--new", "3")
    result = bench("prefixes", folder, "--dtype", "float32", "--threads", "1", *sizes)
    assert set(result["by_count"]) == {"1", "60"}
    assert 0 < result["resolve"]["warm_us"] < result["resolve"]["cold_us"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own
def test_train_compares_speed_and_memory_with_pefts_and_names_both_dtypes(folder: Path) -> None:
    sizes = ("--rows", "3", "--tokens", "12", "--shortest", "4", "--prefix-length", "2")
    result = bench("train", folder, *SMALL, *sizes)
    ours, theirs = result["ours"], result["peers"]["peft float32"]
    assert sorted(result["lengths"]) == [4, 8, 12]
    assert set(result["ratio"]) == {"float32 / peft float32"}
    quotient = ours["tokens_per_s"] / theirs["tokens_per_s"]
    assert result["ratio"]["float32 / peft float32"] == pytest.approx(quotient, rel=0.05)
    assert min(ours["peak_mb_float32"], theirs["peak_mb"]) > 50


def test_train_gives_both_contenders_the_same_targets() -> None:
    pairs = TrainLoad(rows=4, tokens=20, prefix_length=2, target_share=0.5, shortest=2).pairs(99)
    assert sorted(map(len, pairs)) == [2, 8, 14, 20]
    assert sorted(len(pair.target_ids) for pair in pairs) == [1, 4, 7, 10]


def test_catalog_reports_the_cost_of_a_name() -> None:
    done = CliRunner().invoke(app, ["bench", "catalog", "--names", "60"])
    assert done.exit_code == 0, done.output
    ours = json.loads(done.stdout.splitlines()[-1])["ours"]
    assert 0 < ours["resolve_warm_us"] < 1000 * ours["resolve_cold_ms"]
    assert ours["resolve_cold_ms"] <= ours["resolve_cold_ms_p99"]
    assert min(ours["create_us"], ours["startup_ms"], ours["startup_ms_without"]) > 0


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_that_ends_a_row_early_would_be_noticed(name: str, folder: Path) -> None:
    """All rows reach the longest one's length, end-of-text or not; else the peer raises."""
    load = Load((Item((1, 2, 3), 2, 0), Item((4, 5), 9, 1)), (3, 3))
    PEERS[name](str(folder), load, "float32", 2)()


def test_peers_are_named_by_commas_and_a_family_stands_for_its_kinds() -> None:
    assert expand_peers("") == []
    assert expand_peers("hf-generate, ctranslate2") == [
        "hf-generate",
        "ctranslate2-float32",
        "ctranslate2-int8",
    ]
    with pytest.raises(InvalidRequest, match="unknown peer 'vllm'; there are hf-generate"):
        expand_peers("hf-generate,vllm")


def test_a_ratio_is_ours_over_theirs() -> None:
    result = with_ratios("engine", "cpu", {"tokens_per_s": 30.0}, {"a": 10.0, "b": 60.0})
    assert result["ratio"] == {"a": 3.0, "b": 0.5}


def test_ratios_of_two_dtypes_are_printed_below_the_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures = {"tokens_per_s": 30.0}
    result = {
        "bench": "evaluate",
        "device": "cpu",
        "ours": figures,
        "peers": {"generate float32": {"tokens_per_s": 10.0}},
        "ratio": {"bfloat16 / generate float32": 3.0},
    }
    print_result(result)
    assert "bfloat16 / generate float32: 3.00 ×" in capsys.readouterr().out


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert percentile([], 0.5) == 0.0


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own
def test_train_many_compares_one_pass_with_jobs_one_after_another(folder: Path) -> None:
    sizes = ("--jobs", "3", "--tokens", "12", "--shortest", "6", "--prefix-length", "2")
    result = bench("train-many", folder, *SMALL, *sizes)
    ours = result["ours"]
    assert (result["jobs"], sorted(result["lengths"])) == (3, [6, 9, 12])
    assert set(result["ratio"]) == set(result["peers"])
    for name, ratio in result["ratio"].items():
        quotient = ours["tokens_per_s"] / result["peers"][name]["tokens_per_s"]
        assert ratio == pytest.approx(quotient, rel=0.05)
    assert 0 < ours["products_ms"] < ours["step_ms"]
    assert ours["memory_ratio"] == pytest.approx(
        ours["peak_mb"] / ours["peak_mb_of_one_job"], rel=0.01
    )


def test_evaluate_answers_what_transformers_answers_one_by_one(folder: Path) -> None:
    sizes = ("--inputs", "5", "--longest", "9", "--new", "6", "--prefix-length", "3")
    result = bench("evaluate", folder, *SMALL, *sizes, "--beams", "3")
    ours, theirs = result["ours"], result["peers"]["generate float32"]
    assert result["inputs"] == 5
    assert ours["outputs_that_differ"] == 0
    assert set(result["ratio"]) == {"float32 / generate float32"}
    quotient = ours["inputs_per_s"] / theirs["inputs_per_s"]
    assert result["ratio"]["float32 / generate float32"] == pytest.approx(quotient, rel=0.05)


def test_evaluate_decodes_behind_the_prefix_by_beams_in_both_ways(folder: Path) -> None:
    """Each option changes what both say, and both say the same."""
    load = EvaluationLoad(inputs=6, longest=24, new=8, num_beams=3, prefix_length=4)
    assert {len(prompt) for prompt in load.prompts} <= set(range(16, 25))
    said = []
    for changes in ({}, {"num_beams": 1}, {"prefix_length": 1}):
        given = (str(folder), replace(load, **changes), "float32", torch.get_num_threads())
        ours, theirs = EngineDecoder(*given), PlainDecoder(*given)
        ours()
        ours.stop()
        theirs()
        assert ours.outputs == theirs.outputs
        assert len(ours.outputs) == 6
        said.append(ours.outputs)
    assert said[0] != said[1]
    assert said[0] != said[2]


def test_evaluate_refuses_a_model_with_an_encoder(bart_folder: Path) -> None:
    settings = make_settings(str(bart_folder), "float32", 1, 1)
    with pytest.raises(InvalidRequest, match="--model has an encoder"):
        run_evaluate(settings, EvaluationLoad(2, 9, 4, 2, 3))
