"""A base model with what a method has trained, ready to answer: on the engine, like any model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from app.datasets.example import Example
from app.engine.offline import CompletedRequest
from app.engine.request import GenerationRequest
from app.errors import InvalidRequest
from app.evaluation.evaluator import EngineRunner, Evaluation, Evaluator, running_engine
from app.evaluation.slots import has_slots, slot_errors
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.composition import compose
from app.prefix.prefix import Prefix, PrefixMetadata
from app.training.methods.files import TrainedFile, read_trained
from app.training.methods.infix import keys_values_with_infix
from app.training.methods.method import State
from app.training.methods.prefix_method import modules_of
from app.training.methods.weights import copy_state, install
from app.training.recipe import Recipe

Result = TypeVar("Result")


@dataclass(frozen=True)
class InfixRunner:
    """Gives each request the keys and values of its own input and the infix, as a prefix."""

    runner: EngineRunner
    infix: State

    async def complete(self, requests: Sequence[GenerationRequest]) -> list[CompletedRequest]:
        """All requests, each behind its own prefix."""
        return await self.runner.complete([self._with_infix(each) for each in requests])

    async def compute(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """At once."""
        return work(*arguments)

    async def compute_each(
        self, work: Callable[..., Result], pieces: Sequence[tuple[Any, ...]], _: Sequence[int]
    ) -> list[Result]:
        """One piece after another."""
        return [work(*piece) for piece in pieces]

    def _with_infix(self, request: GenerationRequest) -> GenerationRequest:
        model, ids = self.runner.engine.model, request.prompt_ids
        seen = keys_values_with_infix(model, self.infix, ids)
        prefix = Prefix({"decoder": seen}, PrefixMetadata(seen.length)).to(
            model.device, model.dtype
        )
        room = model.spec.context_limit - seen.length - 1
        sampling = replace(request.sampling, max_tokens=min(request.sampling.max_tokens, room))
        return replace(request, prompt_ids=ids[-1:], prefixes=(prefix,), sampling=sampling)


@dataclass(frozen=True)
class TunedModel:
    """A model and what a method has trained for it.

    For weight methods `model` is the changed model; `state` is used by the others. A prefix stands
    behind `on`, if that is given.
    """

    model: FrozenModel
    method: str
    state: State
    template: str
    decoding: Mapping[str, Any]
    on: Prefix | None = None

    def evaluate(
        self,
        examples: Sequence[Example],
        metrics: Sequence[str] = ("bleu", "rouge_l"),
        runner: EngineRunner | None = None,
    ) -> Evaluation:
        """Decode the inputs and score the texts; `runner` has an engine on the model, if given."""
        if runner is None:
            with running_engine(self.model) as engine:
                return self.evaluate(examples, metrics, EngineRunner(engine))
        references = [example.targets for example in examples]
        scored = self._evaluator(runner).evaluate(self._prompts(examples), references, metrics)
        return asyncio.run(scored)

    def score(
        self, examples: Sequence[Example], metric: str, runner: EngineRunner | None = None
    ) -> float:
        """How good the answers are, 0 to 100: "bleu", "rouge_l", or "slots".

        That is the share of the answers that say all values of their inputs and invent none, of
        inputs that `check_inputs` has taken. `runner` as in `evaluate`.
        """
        if metric != "slots":
            return self.evaluate(examples, (metric,), runner).score(metric)
        inputs = [example.input for example in examples]
        report = slot_errors(inputs, self.texts(inputs, runner))
        return 0.0 if report is None else report.share_all_right

    def texts(
        self, inputs: Sequence[str], runner: EngineRunner | None = None, *, max_source: int = 0
    ) -> list[str]:
        """What the model says to each input, of which an encoder reads `max_source` tokens.

        With 0 it reads as many as it can. `runner` as in `evaluate`.
        """
        if runner is None:
            with running_engine(self.model) as engine:
                return self.texts(inputs, EngineRunner(engine), max_source=max_source)
        examples = [Example(text, ("",), 0) for text in inputs]
        prompts = self._prompts(examples, max_source)
        answers = asyncio.run(self._evaluator(runner).answers(prompts))
        return [answer.text for answer in answers]

    def _evaluator(self, runner: EngineRunner) -> Evaluator:
        if self.method == "infix":
            return Evaluator(self.model, None, InfixRunner(runner, self.state), self.decoding)
        prefix = None
        if modules := self._prefix_modules():
            offset = 0 if self.model.encoder_decoder is not None else modules["decoder"].length
            prefix = Prefix(modules, PrefixMetadata(offset))
            prefix = prefix if self.on is None else compose([self.on, prefix])
            prefix = prefix.to(self.model.device, self.model.dtype)
        return Evaluator(self.model, prefix, runner, self.decoding)

    def _prefix_modules(self) -> dict[str, Any]:
        return modules_of(self.state) if "decoder.keys" in self.state else {}

    def _prompts(self, examples: Sequence[Example], max_source: int = 0) -> list[tuple[int, ...]]:
        text, room = self.model.text, self.model.source_room(max_source)
        return [text.cut_source(text.render(self.template, e.input), room) for e in examples]


def check_inputs(metric: str, examples: Sequence[Example], source: str) -> None:
    """Raise InvalidRequest, which names file and line, for an input that `metric` cannot score."""
    for example in examples:
        if metric == "slots" and not has_slots(example.input):
            raise InvalidRequest(
                f"{source}:{example.line}: metric `slots` needs inputs of fields (`name : Aromi |"
                " food : Thai`) or triples, and this one has none; choose `bleu`, `rouge_l` or"
                " `loss`"
            )


def load_tuned_model(path: Path, model: str, *, device: str = "auto") -> TunedModel:
    """A base model with what a file of `polyprefix train --method` adds to it.

    Raises InvalidRequest if the file is damaged or made for another base model.
    """
    file = read_trained(path)
    frozen = load_model(model, device=device, dtype="float32", packed=file.method == "infix")
    return tuned_model(frozen, file, path)


def tuned_model(frozen: FrozenModel, file: TrainedFile, path: Path) -> TunedModel:
    """`frozen` with the file's content; weight methods change it in place."""
    if frozen.spec.fingerprint != file.base_fingerprint:
        raise InvalidRequest(
            f"{path} was trained on {file.base_model}, not on this base model; choose it with"
            " --model"
        )
    if file.method != "infix":
        try:
            settings = {
                **file.recipe,
                "modules": (),
                "lora_targets": tuple(file.recipe["lora_targets"]),
            }
            parameters = install(frozen, Recipe(**settings))
            copy_state(parameters, file.state)
        except (KeyError, TypeError, RuntimeError) as error:
            raise InvalidRequest(f"{path} lacks what its method needs: {error}") from error
        for parameter in parameters.values():
            parameter.requires_grad_(False)
    return TunedModel(frozen, file.method, file.state, file.input_template, file.decoding)
