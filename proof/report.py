"""docs/PROOF.md: a section for each proof, written anew when that one has run."""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

HEAD = """\
# What was proved

Made by `make prove`, which writes the section of each proof that it has run. A section says what was tried and what
came of it; a number stands here because it was counted or measured in the run that the section names.
"""
_BEGIN = "<!-- {} -->"


def with_section(report: str, name: str, text: str, order: Sequence[str]) -> str:
    """The report with a proof's section in its place; those of proofs that are not in `order` any more go."""
    parts = re.split(r"^<!-- (\w+) -->\n", report, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True)) | {name: text}
    written = [f"{_BEGIN.format(one)}\n{sections[one].strip()}\n" for one in order if one in sections]
    return "\n".join([HEAD, *written])


def revision() -> str:
    """The commit that is checked out, and whether files differ from it."""
    described = subprocess.run(
        ["/usr/bin/env", "git", "describe", "--always", "--dirty=, changed"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return f"commit {described.stdout.strip()}" if described.returncode == 0 else "files without a history"
