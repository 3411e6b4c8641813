"""What is said in a turn: ordinary English words, drawn evenly and by a seed: the same for every store.

Real prose repeats itself more, and so compresses better than this.
"""

import random
from pathlib import Path

QUESTION_BYTES = 500
ANSWER_BYTES = 1_500

_WORDS = Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split()


def question(turn: int) -> str:
    """What the user says in a turn."""
    return words(f"question {turn}", QUESTION_BYTES)


def answer(turn: int) -> str:
    """What the assistant answers."""
    return words(f"answer {turn}", ANSWER_BYTES)


def words(seed: str, size: int) -> str:
    """Words that take exactly so many bytes."""
    draw = random.Random(seed)  # noqa: S311 - text, not secrets
    text = ""
    while len(text) < size:
        text += _WORDS[int(draw.random() * len(_WORDS))] + " "
    return text[: size - 1] + "."
