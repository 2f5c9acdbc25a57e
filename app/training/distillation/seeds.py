"""The fixed words from which a model makes exchanges about a text."""

from __future__ import annotations

QUESTION_REQUESTS = (
    "Write one short question that the text above answers. Write the question only.",
    "Write one short question about a fact in this sentence of the text: {}",
    "Write a question whose answer is a name, a number or a place in this sentence: {}",
    "A student reads: {}\nWrite one question that tests whether the student understood it.",
)
"""What a chat model is asked; `{}` is a sentence of the text. The first needs none."""
RECALL_REQUEST = "What does the text say after this sentence? {}"
QUESTION_STEM = "Question:"
"""The beginning from which a model without chat writes a question."""
ANSWER_STEM = "\nAnswer:"
REQUESTS = (
    "Summarize the text in one sentence.",
    "List the most important facts of the text.",
    "What is the text about?",
    "Which names, numbers and dates does the text mention?",
    "Explain the text to a friend in simple words.",
    "What happens at the end of the text?",
    "What is the beginning of the text about?",
    "Write three key points of the text.",
)
"""Requests that fit any text."""
