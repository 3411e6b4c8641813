"""Memory and descriptors of processes, read from /proc while they work, and whether they grow."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

PROC = Path("/proc")
MORE_MEMORY, MORE_MEGABYTES = 1.03, 3.0
"""What the last fifth of a run may take beyond the second fifth (the first one warms up). Allocators wander by this
much; a process that kept each of its turns, of 4 KB on average and as objects several times that, would not fit in."""
MORE_DESCRIPTORS = 4
"""Above the most of the first two fifths: the height of a peak is chance, a pool's connection more or less."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A process at one moment."""

    megabytes: float
    """Resident memory."""
    descriptors: int

    def __str__(self) -> str:
        return f"{self.megabytes:.1f} MB, {self.descriptors} open"


def missing_proc() -> str | None:
    """None where processes can be read, else a sentence that says what is lacking."""
    return None if (PROC / "self" / "fd").is_dir() else "This proof reads /proc, which only Linux has."


def sample(pid: int) -> Sample | None:
    """A process now; None where it is gone, or is ending."""
    try:
        status = (PROC / str(pid) / "status").read_text()
        descriptors = len(list((PROC / str(pid) / "fd").iterdir()))
    except (FileNotFoundError, ProcessLookupError):
        return None
    resident = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    return Sample(megabytes=int(resident[1]) / 1024, descriptors=descriptors) if resident else None


def commands_below(pid: int) -> dict[int, str]:
    """The processes that a process started, and those that they started, with their command lines."""
    parents: dict[int, int] = {}
    commands: dict[int, str] = {}
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text()
            commands[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    return {one: command for one, command in commands.items() if _is_below(one, pid, parents)}


def _is_below(pid: int, ancestor: int, parents: Mapping[int, int]) -> bool:
    above = parents.get(pid)
    return above == ancestor or (above is not None and _is_below(above, ancestor, parents))


def fifth(samples: Sequence[Sample], which: int) -> Sequence[Sample]:
    """One fifth of a series in time, from 1 to 5."""
    return samples[len(samples) * (which - 1) // 5 : len(samples) * which // 5]


def typical(samples: Sequence[Sample]) -> Sample:
    """The median of a series, each value for itself."""
    return Sample(
        megabytes=median(one.megabytes for one in samples),
        descriptors=round(median(one.descriptors for one in samples)),
    )


def growth(samples: Sequence[Sample], *, warm: bool = True) -> list[str]:
    """What a process has more of at the end than it may, by the samples of a run that let it get `warm`."""
    if len(samples) < 10:
        return [f"{len(samples)} samples say nothing"]
    early, late = (typical(fifth(samples, which)).megabytes for which in (2, 5))
    found = []
    if warm and late > early * MORE_MEMORY + MORE_MEGABYTES:
        found.append(f"memory grew from {early:.1f} MB in the second fifth to {late:.1f} MB in the last")
    most = max(one.descriptors for which in (1, 2) for one in fifth(samples, which))
    last = typical(fifth(samples, 5)).descriptors
    if last > most + MORE_DESCRIPTORS:
        found.append(f"descriptors grew from {most} at the most in the first two fifths to {last} in the last")
    return found
