"""The data of an experiment: what is trained on, what is tested on, and low-data subsets."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app.datasets.example import Example
from app.datasets.hugging_face import is_saved_dataset
from app.datasets.parts import data_files, parts_below, parts_in
from app.datasets.reader import ReadOptions, read_examples
from app.datasets.splits import WEBNLG_UNSEEN, HoldOut, subset
from app.errors import InvalidRequest

_CATEGORY = "category"
_FALLBACK_UNSEEN = ("Astronaut", "Monument", "University")
"""Held out where the data have none of the categories that the challenge held out."""
_TESTED = ("test", "dev", "valid")
"""The parts to test on, the first one that there is."""
_SPLIT_SEED = 101
_HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class ExperimentData:
    """Examples to train on and to test on; `unseen` has the test of held-out values, if any.

    No input is in two of the three.
    """

    name: str
    train: Sequence[Example]
    test: Sequence[Example]
    unseen: Sequence[Example] = ()

    @property
    def num_pairs(self) -> int:
        """Pairs of input and target to train on."""
        return sum(len(example.targets) for example in self.train)

    def digest(self) -> str:
        """SHA-256, hex, of all inputs and targets in their parts."""
        parts = [
            [[example.input, *example.targets] for example in part]
            for part in (self.train, self.test, self.unseen)
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def load_data(
    path: Path,
    *,
    test_inputs: int = 0,
    hold_out: HoldOut | None = None,
    reading: ReadOptions | None = None,
) -> ExperimentData:
    """The data in a file or folder; at most `test_inputs` inputs are tested (0: all).

    A folder may hold a file, a subfolder or a saved split called `train`, and one to test on called
    `test`, `dev` or `valid`. From a single file a tenth of the inputs, or `test_inputs` of them, is
    held out.
    With `hold_out`, examples that it names are never trained on and make a second test.
    `reading` says how the files are read. InvalidRequest if a part is missing or empty.
    """
    train_file, test_file = _files(path, reading)
    train = read_examples(train_file, reading)
    if test_file is None:
        train, test = _held_out(train, test_inputs, path)
    else:
        test = read_examples(test_file, reading)
        tested = {example.input for example in test}
        train = [example for example in train if example.input not in tested]
    unseen: list[Example] = []
    if hold_out is not None:
        seen, unseen = hold_out.split([*train, *test])
        kept = {example.input for example in seen}
        train = [example for example in train if example.input in kept]
        test = [example for example in test if example.input in kept]
    if not train or not test:
        raise InvalidRequest(
            f"{path}: {'training' if not train else 'test'} examples are missing after the split"
        )
    return ExperimentData(path.name, train, _some(test, test_inputs), _some(unseen, test_inputs))


def default_hold_out(path: Path, reading: ReadOptions | None = None) -> HoldOut:
    """The WebNLG challenge's unseen categories; where the data have none of them, three others."""
    files = [each for each in _files(path, reading) if each is not None]
    found = {
        value
        for each in files
        for example in read_examples(each, reading)
        for value in example.attributes.get(_CATEGORY, ())
    }
    chosen = WEBNLG_UNSEEN if found & set(WEBNLG_UNSEEN) else _FALLBACK_UNSEEN
    return HoldOut(_CATEGORY, chosen)


def low_data_split(
    examples: Sequence[Example], size: int, development: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """`size` random pairs to train on and `development` others; the same seed, the same pairs.

    `size` 0 means all pairs that are not for development. InvalidRequest if there are too few.
    """
    pairs = [
        replace(example, targets=(target,)) for example in examples for target in example.targets
    ]
    size = size or len(pairs) - development
    train = subset(pairs, size, seed)
    if not development:
        return train, []
    chosen = set(train)
    both = subset(pairs, size + development, seed)
    return train, [pair for pair in both if pair not in chosen]


def development_split(
    examples: Sequence[Example], pairs: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """Inputs to train on, and others for development with at least so many pairs.

    The same seed gives the same inputs. InvalidRequest if nothing is left to train on.
    """
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    held: set[int] = set()
    found = 0
    while order and found < pairs:
        at = order.pop()
        held.add(at)
        found += len(examples[at].targets)
    if not order:
        raise InvalidRequest(
            f"{pairs} pairs for development leave nothing to train on; give more data"
        )
    train = [example for at, example in enumerate(examples) if at not in held]
    return train, [examples[at] for at in sorted(held)]


def write_examples(path: Path, examples: Sequence[Example]) -> Path:
    """Write examples as JSON lines, completely or not at all; return the path."""
    lines = [
        json.dumps({"input": example.input, "targets": list(example.targets)}) + "\n"
        for example in examples
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(path.name + ".tmp")
    staged.write_text("".join(lines), encoding="utf-8")
    staged.replace(path)
    return path


def _files(path: Path, reading: ReadOptions | None) -> tuple[Path, Path | None]:
    """The file or folder to train on, and the one to test on if it is another."""
    if not path.exists():
        raise InvalidRequest(f"--data: {path} does not exist")
    if not path.is_dir() or (reading is not None and reading.split is not None):
        return path, None
    parts = parts_in(path)
    train = parts.get("train", [])
    test = next((parts[name][0] for name in _TESTED if name in parts), None)
    if len(train) == 1 or (train and train[0].is_dir()):
        return train[0], test
    if train and test is not None:
        names = ", ".join(each.name for each in train)
        raise InvalidRequest(
            f"--data: {path} has several files to train on ({names}); leave one of them there, or"
            " put them into one file"
        )
    below = parts_below(path)
    if len(below) > 1:
        names = ", ".join(str(each[0].relative_to(path)) for each in below.values())
        raise InvalidRequest(
            f"--data: nothing directly in {path} is called train, but below it there are {names};"
            " give the folder in which the training and the test part lie, or one file"
        )
    files = data_files(path)
    if len(files) == 1 and files[0].suffix.lower() != ".xml" and not is_saved_dataset(path):
        return files[0], None
    return path, None


def _held_out(
    examples: Sequence[Example], wanted: int, path: Path
) -> tuple[list[Example], list[Example]]:
    count = wanted or max(1, round(_HELD_OUT_SHARE * len(examples)))
    if count >= len(examples):
        raise InvalidRequest(
            f"{path}: {count} inputs to test on leave nothing of {len(examples)} to train on; give"
            " a smaller --test-inputs"
        )
    chosen = set(random.Random(_SPLIT_SEED).sample(range(len(examples)), count))
    train = [example for at, example in enumerate(examples) if at not in chosen]
    return train, [examples[at] for at in sorted(chosen)]


def _some(examples: Sequence[Example], count: int) -> list[Example]:
    if not count or count >= len(examples):
        return list(examples)
    at = sorted(random.Random(_SPLIT_SEED).sample(range(len(examples)), count))
    return [examples[number] for number in at]
