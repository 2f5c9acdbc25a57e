"""Without prefixes, and with them in a cache: what `model.generate` of transformers gives."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import BartForConditionalGeneration, GenerationMixin, PreTrainedModel

from app.engine.attention.backends import NAMES
from app.engine.config import EngineConfig
from app.engine.decoding.beam_search import BeamParams
from app.engine.request import GenerationRequest, RequestFinished
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.prefix import Prefix
from tests.engine.harness import SteppedEngine, make_request
from tests.equivalence.beam_results import Result, assert_same_results, found_by
from tests.equivalence.reference import generate, plain_model
from tests.tiny import VOCABULARY, bart_config, random_prefix, save_model

CAUSAL = ("gpt2", "llama")
ENDS = frozenset(range(2, VOCABULARY, 20))
"""So many tokens end a text that searches end early, and that some results beat longer ones."""


@dataclass(frozen=True)
class Case:
    """A request; without `num_beams` the most probable token each time."""

    prompt: tuple[int, ...]
    max_tokens: int
    num_beams: int | None
    length_penalty: float
    early_stopping: bool | Literal["never"]
    n: int
    no_repeat_ngram_size: int
    min_tokens: int
    repetition_penalty: float

    def request(self, name: str, prefixes: Sequence[Prefix] = ()) -> GenerationRequest:
        beam = None
        if self.num_beams is not None:
            beam = BeamParams(self.num_beams, self.length_penalty, self.early_stopping)
        return make_request(
            name,
            self.prompt,
            self.max_tokens,
            prefixes,
            self.n,
            ignore_eos=False,
            beam=beam,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            min_tokens=self.min_tokens,
            repetition_penalty=self.repetition_penalty,
        )

    @property
    def options(self) -> dict[str, object]:
        """The same for transformers."""
        options: dict[str, object] = {
            "max_new_tokens": self.max_tokens,
            "min_new_tokens": self.min_tokens or None,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            "repetition_penalty": self.repetition_penalty,
            "eos_token_id": sorted(ENDS),
        }
        if self.num_beams is None:
            return options
        return options | {
            "num_beams": self.num_beams,
            "num_return_sequences": self.n,
            "length_penalty": self.length_penalty,
            "early_stopping": self.early_stopping,
            # with one beam `generate` would not search but take the most probable token
            "custom_generate": GenerationMixin._beam_search,
        }


def random_cases(seed: int, count: int) -> list[Case]:
    draw = random.Random(seed)
    cases = []
    for _ in range(count):
        num_beams = draw.choice([None, 1, 2, 3, 4, 5])
        max_tokens = draw.randint(1, 16)
        cases.append(
            Case(
                tuple(draw.choices(range(VOCABULARY), k=draw.randint(1, 50))),
                max_tokens,
                num_beams,
                draw.choice([-1.0, 0.0, 0.6, 1.0, 2.0]),
                draw.choice([False, True, "never"]),
                draw.randint(1, num_beams or 1),
                draw.choice([0, 0, 1, 2, 3]),
                min(max_tokens, draw.choice([0, 0, 4])),
                draw.choice([1.0, 1.0, 1.0, 1.3]),
            )
        )
    return cases


def run_all(
    model: FrozenModel, requests: Sequence[GenerationRequest], config: EngineConfig
) -> SteppedEngine:
    """All requests together, with more tokens that end a text than the model has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.text, "eos_token_ids", ENDS)
        stepped = SteppedEngine(model, config, patch)
        for request in requests:
            stepped.add(request)
        stepped.run()
    stepped.check_empty()
    for request in requests:
        assert isinstance(stepped.terminal(request.id), RequestFinished)
    return stepped


def results_of(stepped: SteppedEngine, name: str, n: int) -> list[Result]:
    return [Result(tuple(stepped.tokens(name, row)), stepped.score(name, row)) for row in range(n)]


def greedy_by(output: object, start: int) -> tuple[int, ...]:
    """The only sequence of a greedy `generate`, up to its end."""
    tokens = output.sequences[0, start:].tolist()
    ended = [place for place, token in enumerate(tokens) if token in ENDS]
    return tuple(tokens[: ended[0] + 1] if ended else tokens)


def check_causal(
    stepped: SteppedEngine,
    plain: PreTrainedModel,
    name: str,
    case: Case,
    prefixes: Sequence[Prefix] = (),
) -> None:
    start = len(case.prompt)
    if case.num_beams is None:
        output = generate(plain, prefixes, [case.prompt], **case.options)
        assert tuple(stepped.tokens(name)) == greedy_by(output, start)
        return
    assert_same_results(
        results_of(stepped, name, case.n),
        lambda **more: found_by(
            generate(plain, prefixes, [case.prompt], **case.options, **more), start
        ),
    )


@pytest.mark.parametrize("max_step_tokens", [7, 512])
@pytest.mark.parametrize("family", CAUSAL)
def test_requests_of_a_mix_without_prefixes_give_what_generate_gives(
    tiny_models: dict[str, FrozenModel],
    model_folders: dict[str, Path],
    family: str,
    max_step_tokens: int,
) -> None:
    cases = random_cases(max_step_tokens, 30)
    config = EngineConfig(max_step_tokens=max_step_tokens)
    requests = [case.request(str(index)) for index, case in enumerate(cases)]
    stepped = run_all(tiny_models[family], requests, config)
    for index, case in enumerate(cases):
        check_causal(stepped, plain_model(model_folders[family]), str(index), case)


@pytest.mark.parametrize("decode_attention", NAMES)
@pytest.mark.parametrize("family", CAUSAL)
def test_requests_of_a_mix_with_prefixes_give_what_generate_gives_behind_a_cache(
    tiny_models: dict[str, FrozenModel],
    model_folders: dict[str, Path],
    family: str,
    decode_attention: str,
) -> None:
    """Prefixes that are copied, shared by several requests, composed, that shift and do not."""
    model = tiny_models[family]
    offsets = {5: 5, 12: 0, 40: 20, 70: 30, 90: 0}
    made = {
        length: random_prefix(model, length, seed=length, position_offset=offset)
        for length, offset in offsets.items()
    }
    stacks = [(5,), (12, 40), (40, 40), (70,), (90,), (70,), (5, 70), ()]
    cases = random_cases(3, 24)
    prefixes = [[made[length] for length in stacks[place % 8]] for place in range(24)]
    requests = [
        case.request(str(index), stack)
        for index, (case, stack) in enumerate(zip(cases, prefixes, strict=True))
    ]
    stepped = run_all(model, requests, EngineConfig(decode_attention=decode_attention))
    for index, (case, stack) in enumerate(zip(cases, prefixes, strict=True)):
        check_causal(stepped, plain_model(model_folders[family]), str(index), case, stack)


@pytest.mark.parametrize("family", CAUSAL)
def test_a_shared_prefix_and_the_trunk_beside_it_are_both_attended_to(
    tiny_models: dict[str, FrozenModel], model_folders: dict[str, Path], family: str
) -> None:
    """They stand in neighbouring slots of one length class, and are seen by the same tokens."""
    model = tiny_models[family]
    prefix = random_prefix(model, 90, seed=1, position_offset=0)
    case = Case(tuple(range(80)), 8, 3, 1.0, False, 2, 0, 0, 1.0)
    stepped = run_all(model, [case.request("it", [prefix])], EngineConfig())
    check_causal(stepped, plain_model(model_folders[family]), "it", case, [prefix])


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("family", CAUSAL)
def test_a_static_batch_padded_on_the_left_gives_what_the_ragged_one_gives(
    tiny_models: dict[str, FrozenModel],
    model_folders: dict[str, Path],
    family: str,
    num_beams: int,
) -> None:
    model = tiny_models[family]
    prefix = random_prefix(model, 9, seed=1)
    prompts = [tuple(range(first, first + size)) for first, size in ((5, 3), (60, 30), (99, 17))]
    beam = BeamParams(num_beams) if num_beams > 1 else None
    requests = [
        make_request(str(index), prompt, 12, [prefix], ignore_eos=False, beam=beam)
        for index, prompt in enumerate(prompts)
    ]
    stepped = run_all(model, requests, EngineConfig())
    output = generate(
        plain_model(model_folders[family]),
        [prefix],
        prompts,
        max_new_tokens=12,
        num_beams=num_beams,
        eos_token_id=sorted(ENDS),
    )
    for index, row in enumerate(output.sequences[:, 30:].tolist()):
        tokens = stepped.tokens(str(index))
        assert row[: len(tokens)] == tokens
        assert len(tokens) == 12 or tokens[-1] in ENDS


@pytest.fixture(scope="module", params=["free", "forced"])
def bart(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FrozenModel, BartForConditionalGeneration]:
    """BART with free ends, and with a first and a last token that its config forces."""
    forced = {"forced_bos_token_id": 0 if request.param == "forced" else None}
    forced["forced_eos_token_id"] = 2 if request.param == "forced" else None
    config = bart_config(**forced)
    folder = save_model(
        tmp_path_factory.mktemp("models") / "bart", config, BartForConditionalGeneration
    )
    plain = BartForConditionalGeneration.from_pretrained(folder).eval()
    return load_model(str(folder), device="cpu", dtype="float32"), plain


@torch.inference_mode()
@pytest.mark.parametrize("max_step_tokens", [40, 512])
def test_bart_without_prefixes_gives_what_generate_gives(
    bart: tuple[FrozenModel, BartForConditionalGeneration], max_step_tokens: int
) -> None:
    """By transformers' own attention, with nothing of ours put into it."""
    model, plain = bart
    cases = random_cases(max_step_tokens, 30)
    requests = [case.request(str(index)) for index, case in enumerate(cases)]
    stepped = run_all(model, requests, EngineConfig(max_step_tokens=max_step_tokens))
    for index, case in enumerate(cases):
        check_bart(stepped, plain, str(index), case)


def check_bart(
    stepped: SteppedEngine, plain: BartForConditionalGeneration, name: str, case: Case
) -> None:
    def run(**more: object) -> object:
        return plain.generate(
            torch.tensor([case.prompt]),
            attention_mask=torch.ones(1, len(case.prompt), dtype=torch.long),
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            **case.options,
            **more,
        )

    if case.num_beams is None:
        assert tuple(stepped.tokens(name)) == greedy_by(run(), 1)
        return
    results = results_of(stepped, name, case.n)
    assert_same_results(results, lambda **more: found_by(run(**more), 1))
