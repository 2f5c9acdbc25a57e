"""The texts of the study, and questions about them with exact answers.

The questions were fixed before the first run, and no run trains on them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_FACT_QUESTIONS = {
    "leaderName": "Who is the leader of {}?",
    "runwayLength": "How long is the runway of {}?",
    "operatingOrganisation": "Which organisation operates {}?",
    "cityServed": "Which city does {} serve?",
    "architect": "Who is the architect of {}?",
    "creator": "Who created {}?",
    "mainIngredients": "What are the main ingredients of {}?",
    "region": "Which region does {} come from?",
    "manager": "Who is the manager of {}?",
    "numberOfMembers": "How many members does {} have?",
    "ground": "What is the ground of {}?",
    "author": "Who is the author of {}?",
    "publisher": "Who is the publisher of {}?",
}
_SPEECH_BEGINS = "Great confidence is entertained that the late treaty with Spain"
_SPEECH_ENDS = "continue still in force."
_SPEECH_QUESTIONS = (
    ("With which country was the late treaty ratified by both parties?", "Spain"),
    ("Which territory did the United States acquire?", "Florida"),
    ("In which gulf are the excellent harbors?", "Gulf of Mexico"),
    ("What is the date of the treaty with the British Government?", "20th of October, 1818"),
    ("When was the convention regulating the commerce concluded?", "3d of July, 1815"),
    ("For how many years was the convention continued?", "ten years"),
    ("Under which treaty had the differences about fish arisen?", "Ghent"),
    ("With which dominions has no agreement on commerce been made yet?", "West Indies"),
)


@dataclass(frozen=True)
class StudyText:
    """A text and questions about it, each with its answer."""

    name: str
    text: str
    questions: tuple[tuple[str, str], ...]

    def score(self, answers: list[str]) -> int:
        """How many of the questions' answers are in what a model said; case does not matter."""
        return sum(
            _plain(right) in _plain(said)
            for said, (_, right) in zip(answers, self.questions, strict=True)
        )


def facts(webnlg: Path) -> StudyText:
    """Every second single fact of WebNLG's development data that a question is known for.

    One fact for each subject, in the order of the file. Its first reference is a sentence of the
    text, and has the answer word for word.
    """
    chosen: dict[str, tuple[str, str, str]] = {}
    for line in webnlg.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["size"] != 1:
            continue
        subject, relation, value = (field.strip() for field in row["input"].split(" : ", 2))
        sentence = row["targets"][0]
        if relation in _FACT_QUESTIONS and _plain(_name(value)) in _plain(sentence):
            asked = _FACT_QUESTIONS[relation].format(_name(subject))
            chosen.setdefault(subject, (sentence, asked, _name(value)))
    kept = list(chosen.values())[::2]
    sentences = [sentence for sentence, _, _ in kept]
    return StudyText("facts", " ".join(sentences), tuple((q, a) for _, q, a in kept))


def speech(speeches: Path) -> StudyText:
    """Two paragraphs of the inaugural address of 1821."""
    whole = speeches.read_text(encoding="utf-8")
    start = whole.index(_SPEECH_BEGINS)
    end = whole.index(_SPEECH_ENDS, start) + len(_SPEECH_ENDS)
    return StudyText("speech", whole[start:end], _SPEECH_QUESTIONS)


TEXTS: dict[str, Callable[[Path], StudyText]] = {"facts": facts, "speech": speech}
"""The texts by name; each is read from a file of `webnlg` or of speeches."""


def _name(resource: str) -> str:
    """`Aarhus_Airport` as people write it, without what tells it from others of its name."""
    spaced = resource.replace("_", " ").replace('"', "")
    return re.sub(r" \([^)]*\)", "", re.sub(r"\.0$", "", spaced)).strip()


def _plain(text: str) -> str:
    return " ".join(re.sub(r"(?<=\d),(?=\d)", "", text.lower().replace("–", "-")).split())
