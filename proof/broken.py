"""Copies of the project in which one thing is broken on purpose, for proofs that have to notice."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("events", "handlers", "local", "memory", "proof", "tests")
FILES = ("pyproject.toml", "template.yaml")
ENGINES = "local/node_modules"
LEFT = shutil.ignore_patterns("node_modules", "__pycache__")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A text `old` in a file of the project, and what stands there instead."""

    file: str
    old: str
    new: str


@contextmanager
def copy_with(change: Change | None) -> Iterator[Path]:
    """The folder of a copy that has the change. Raises ValueError where there is nothing to change any more."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for one in FOLDERS:
            shutil.copytree(ROOT / one, folder / one, ignore=LEFT)
        for one in FILES:
            shutil.copy(ROOT / one, folder / one)
        (folder / ENGINES).symlink_to(ROOT / ENGINES)
        if change:
            _make(change, folder)
        yield folder


def _make(change: Change, folder: Path) -> None:
    file = folder / change.file
    text = file.read_text()
    if change.old not in text:
        raise ValueError(f"{change.file} has changed, and has no {change.old!r} to break")
    file.write_text(text.replace(change.old, change.new))
