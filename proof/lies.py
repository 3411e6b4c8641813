"""Mutants of the log: what a proof that finds nothing must find all the same.

Each breaks one promise by one change to the text of a module; the schedules then run on a copy of the project with it.
"""

import re
import subprocess
import sys
from dataclasses import dataclass

from proof.broken import Change, copy_with


@dataclass(frozen=True, kw_only=True)
class Lie:
    """A change that breaks a promise: the text `old` in a module of memory, and what stands there instead."""

    name: str
    module: str
    old: str
    new: str
    row: str
    """Of the schedules that are to notice."""

    @property
    def change(self) -> Change:
        return Change(file=f"memory/{self.module}.py", old=self.old, new=self.new)


LIES = (
    Lie(
        name="a commit overwrites",
        module="table",
        old='ConditionExpression="attribute_not_exists(pk)"',
        new='ConditionExpression="attribute_not_exists(nothing)"',
        row="leases run out",
    ),
    Lie(
        name="a claim does not compare",
        module="items",
        old='HELD = "#holder = :seen"',
        new='HELD = "(attribute_exists(#holder) OR #holder = :seen)"',
        row="no faults",
    ),
    Lie(
        name="a lease is not waited for",
        module="dynamodb",
        old="return max(0.0, min(left, LEASE.total_seconds() - watched))",
        new="return 0",
        row="no faults",
    ),
    Lie(
        name="a refusal by one's own token is no success",
        module="dynamodb",
        old='if refusal.item.get("token") != turn.token:',
        new="if refusal.item:",
        row="lost responses",
    ),
    Lie(
        name="a refused commit is called stored",
        module="dynamodb",
        old="return await self._answer_in_its_place(refusal.item, turn)",
        new="return turn",
        row="leases run out",
    ),
    Lie(
        name="a delete keeps the generation",
        module="dynamodb",
        old='count_up=["generation", "reserved"]',
        new='count_up=["reserved"]',
        row="deletes",
    ),
    Lie(
        name="a delete compares no generation",
        module="dynamodb",
        old='condition=SAME_GENERATION,\n                    seen={":seen_generation": seen.generation},',
        new="condition=EXISTS,",
        row="deletes",
    ),
    Lie(
        name="the ring is not corrected",
        module="reading",
        old="self.state = codec.corrected(self.state, item)",
        new="pass",
        row="leases run out",
    ),
    Lie(
        name="the ring is never asked",
        module="dynamodb",
        old="for number in reading.recalled(request.id):",
        new="for number in ():",
        row="no faults",
    ),
    Lie(
        name="reads are eventually consistent",
        module="table",
        old='{"ConsistentRead": True}',
        new='{"ConsistentRead": False}',
        row="no faults",
    ),
    Lie(
        name="a rewrite holds no number",
        module="dynamodb",
        old="await self.commit(claim, claim.void())",
        new="pass",
        row="rewrites",
    ),
    Lie(
        name="a rewrite's flip compares nothing",
        module="dynamodb",
        old='condition=f"{HELD} AND {UNMARKED}",\n                seen={":seen": claim.token} | _seen_marks(window),',
        new="condition=EXISTS,\n                seen={},",
        row="rewrites",
    ),
    Lie(
        name="a reader of several pages does not look again",
        module="dynamodb",
        old="if whole and (reading.damaged or await self._moved(reading)):",
        new="if whole and reading.damaged:",
        row="readings of many pages",
    ),
    Lie(
        name="a failed turn is shown to the model",
        module="reading",
        old="(TurnStatus.FAILED, TurnStatus.SUPERSEDED)",
        new="(TurnStatus.SUPERSEDED,)",
        row="no faults",
    ),
    Lie(
        name="any turn can be answered again",
        module="reading",
        old="self.followed |= not (failed and supersedes)",
        new="pass",
        row="no faults",
    ),
    Lie(
        name="a sweep goes one generation too far",
        module="sessions",
        old='sweep_all(partition, 0, int(item["generation"]))',
        new='sweep_all(partition, 0, int(item["generation"]) + 1)',
        row="deletes",
    ),
    Lie(
        name="a fork shows another attempt's turns",
        module="sessions",
        old='condition=UNBORN,\n                seen={":seen": holder},',
        new='condition="attribute_exists(#holder)",\n                seen={},',
        row="forks",
    ),
)


def caught(lie: Lie, most: int) -> int | None:
    """How many schedules it took to catch a lie; None where `most` of them did not."""
    with copy_with(lie.change) as folder:
        command = [sys.executable, "-m", "proof.model", "--row", lie.row, "--until-it-fails", "--first", str(most)]
        said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout
    found = re.search(r"^failed after (\d+)", said, re.MULTILINE)
    return int(found[1]) if found else None
