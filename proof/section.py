"""One section of docs/PROOF.md: what was tried, how often, and what was found."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Section:
    """What one proof has to say. `held` is whether everything that was to hold did."""

    title: str
    tried: str
    """What was tried, on which engine, in a sentence or two."""
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    """The table of what was measured or counted."""
    held: bool
    notes: Sequence[str] = field(default_factory=tuple)
    """What the table cannot say; another table, if need be."""

    def markdown(self, ran: str = "") -> str:
        """The section as it stands in the report; `ran` says when and on what."""
        lines = [f"## {self.title}", "", *([f"*{ran}*", ""] if ran else []), self.tried, ""]
        lines += [table(self.head, self.rows)]
        lines += ["", *(f"{note}\n" for note in self.notes), "Held." if self.held else "**Did not hold.**", ""]
        return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(_row(row) for row in (head, ["---"] * len(head), *rows))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
