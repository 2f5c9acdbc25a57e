"""What `polyprefix evaluate` computes: the outputs of all systems, their scores and differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.status import Status

from app.cli.console import stderr
from app.cli.prefix.named_file import prefix_file
from app.datasets.example import Example
from app.datasets.splits import HoldOut
from app.engine.engine import Engine
from app.errors import InvalidRequest
from app.evaluation.baselines import BASELINES
from app.evaluation.evaluator import decode_texts, running_engine
from app.evaluation.scores import score_texts
from app.evaluation.systems import (
    SystemResult,
    compare,
    part_scores,
    read_outputs,
    table_slots,
)
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.codec import decode
from app.prefix.composition import compose
from app.prefix.prefix import Prefix
from app.training.methods.files import is_trained_file
from app.training.methods.tuned import load_tuned_model

BASE = "base alone"


@dataclass(frozen=True)
class SystemOutputs:
    """What a system wrote; `length` is that of its prefix."""

    name: str
    length: int
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Systems:
    """Which systems are scored, by name; `other` is the one that the rest is compared with."""

    with_base: bool
    prefixes: tuple[str, ...]
    baselines: tuple[str, ...]
    outputs: Path | None
    other: str | None

    @classmethod
    def named(
        cls,
        prefixes: Sequence[str],
        baselines: Sequence[str],
        base: bool | None,
        other: str | None,
    ) -> Systems:
        """The systems of the options. InvalidRequest if a baseline is unknown."""
        if unknown := [name for name in baselines if name not in BASELINES]:
            raise InvalidRequest(
                f"--baseline: '{unknown[0]}' is unknown; baselines are {', '.join(BASELINES)}"
            )
        with_base = base if base is not None else bool(prefixes) or not baselines
        plain = cls(with_base, tuple(prefixes), tuple(baselines), None, other)
        if other is None or other in (*prefixes, *baselines):
            return plain
        if other in ("base", BASE):
            return replace(plain, with_base=True, other=BASE)
        if other in BASELINES:
            return replace(plain, baselines=(*plain.baselines, other))
        path = Path(other)
        if path.is_file() and path.suffix != ".safetensors":
            return replace(plain, outputs=path, other=str(path))
        return replace(plain, prefixes=(*plain.prefixes, other))


@dataclass(frozen=True)
class Decoder:
    """Makes systems write about `examples`.

    `template` and `alone` are the prompt and the decoding of the base model alone; `beams` counts
    for every system, `task_beams` where neither prefix nor options say anything.
    """

    examples: Sequence[Example]
    template: str | None
    alone: Mapping[str, Any]
    beams: int | None
    task_beams: int | None

    def texts(
        self, systems: Systems, model: str, store: Path | None, device: str
    ) -> list[SystemOutputs]:
        """The outputs of all systems; the model is loaded only if one needs it.

        A system may also be a file that `polyprefix train` wrote with another method.
        """
        written = [
            SystemOutputs(name, 0, tuple(BASELINES[name](each.input) for each in self.examples))
            for name in systems.baselines
        ]
        if systems.outputs is not None:
            texts = read_outputs(systems.outputs, len(self.examples))
            written.append(SystemOutputs(str(systems.outputs), 0, texts))
        trained = [name for name in systems.prefixes if is_trained_file(Path(name))]
        written = [*(self._tuned(name, model, device) for name in trained), *written]
        names = [name for name in systems.prefixes if name not in trained]
        if not systems.with_base and not names:
            return written
        frozen = load_model(model, device=device, dtype="float32")
        prefixes = {name: read_prefix(name, store, frozen) for name in names}
        with running_engine(frozen) as engine:
            base = [self._decoded(engine, BASE, None)] if systems.with_base else []
            return [*base, *(self._decoded(engine, *each) for each in prefixes.items()), *written]

    def _decoded(self, engine: Engine, name: str, prefix: Prefix | None) -> SystemOutputs:
        own = self.alone if prefix is None else prefix.metadata.decoding
        options = {} if prefix is not None else dict(self.alone)
        options |= self._beams(own)
        with self._status(name):
            texts = decode_texts(
                engine,
                self.examples,
                prefix=prefix,
                template=self.template if prefix is None else None,
                decoding=options,
            )
        return SystemOutputs(name, prefix.length if prefix is not None else 0, texts)

    def _tuned(self, name: str, model: str, device: str) -> SystemOutputs:
        """The outputs with a file of a method that trains no prefix; it needs a model of its own.

        A weight method changes the model's weights.
        """
        tuned = load_tuned_model(Path(name), model, device=device)
        tuned = replace(tuned, decoding={**tuned.decoding, **self._beams(tuned.decoding)})
        with self._status(name):
            texts = tuned.texts([example.input for example in self.examples])
        return SystemOutputs(name, 0, tuple(texts))

    def _beams(self, own: Mapping[str, Any]) -> dict[str, int]:
        """The beams that the options set, over a system's own decoding."""
        if self.beams is not None:
            return {"num_beams": self.beams}
        if self.task_beams is not None and "num_beams" not in own:
            return {"num_beams": self.task_beams}
        return {}

    def _status(self, name: str) -> Status:
        return stderr().status(f"decoding {len(self.examples)} inputs: {name}")


def hold_out_parts(text: str | None, examples: Sequence[Example]) -> dict[str, list[int]]:
    """The numbers of the examples that are seen and of those that are not, by `--hold-out`."""
    if text is None:
        return {}
    seen, unseen = HoldOut.parse(text).split(examples)
    lines = {"seen": {each.line for each in seen}, "unseen": {each.line for each in unseen}}
    return {
        name: [number for number, each in enumerate(examples) if each.line in of_part]
        for name, of_part in lines.items()
    }


def score(
    system: SystemOutputs,
    examples: Sequence[Example],
    names: Sequence[str],
    bert: tuple[Path | None, int],
    parts: Mapping[str, Sequence[int]],
) -> SystemResult:
    """The system's scores by the metrics, its slot errors, and its scores on parts.

    `bert` is the folder of BERTScore's model, and the layer that counts (0: the last).
    """
    with stderr().status(f"scoring {system.name}"):
        references = [example.targets for example in examples]
        scores = score_texts(system.texts, references, names, *bert)
        return SystemResult(
            system.name,
            system.length,
            system.texts,
            scores,
            table_slots(examples, system.texts),
            {part: part_scores(scores, numbers) for part, numbers in parts.items()},
        )


def compared(
    results: Sequence[SystemResult], other: str, *, samples: int, seed: int
) -> list[SystemResult]:
    """The results, each but the other's own with its differences from the system `other`."""
    (against,) = (each for each in results if each.name == other)
    return [
        each
        if each is against
        else replace(each, versus=compare(each.scores, against.scores, samples=samples, seed=seed))
        for each in results
    ]


def read_prefix(name: str, store: Path | None, model: FrozenModel) -> Prefix:
    """The prefix in a file or under a name in the store, on the model's device.

    `FIRST+SECOND` is the composition of several, where no file has that whole name.
    """
    if "+" in name and not Path(name).is_file():
        return compose([read_prefix(part, store, model) for part in name.split("+")])
    path = prefix_file(name, store)
    limit = model.spec.context_limit
    # `decode` refuses links, but the user may name one
    return decode(path.resolve(), model.spec, model.dtype, max_length=limit).to(
        model.device, model.dtype
    )
