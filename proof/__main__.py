"""What `make prove` runs: the proofs one after the other, and the report that they are written to.

`python -m proof` runs all of them at full length; `python -m proof races crashes` some; `--quick` each in a minute or
so, without touching the report.
"""

import argparse
import importlib
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

from proof.section import Section

PROOFS = ("races", "model", "crashes", "hostile")
REPORT = Path(__file__).parent.parent / "docs" / "PROOF.md"
HEAD = """\
# What was proved

Made by `make prove` on {date}, Python {python} on {machine}, in {minutes} minutes. Each section says what was tried and
what came of it; a number stands here because it was counted or measured in that run.
"""


def main() -> None:
    """Exit code 1 where something did not hold."""
    parser = argparse.ArgumentParser(prog="python -m proof", description=__doc__)
    parser.add_argument("proofs", nargs="*", metavar="proof", help=f"which ones: {', '.join(PROOFS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="a minute or so for each; the report is left alone")
    options = parser.parse_args()
    if unknown := set(options.proofs) - set(PROOFS):
        parser.error(f"there is no proof called {', '.join(sorted(unknown))}; there are {', '.join(PROOFS)}")
    began = time.monotonic()
    sections = [_run(name, quick=options.quick) for name in options.proofs or PROOFS]
    if not options.quick and not options.proofs:
        _write(sections, minutes=(time.monotonic() - began) / 60)
    raise SystemExit(0 if all(section.held for section in sections) else 1)


def _run(name: str, *, quick: bool) -> Section:
    print(f"==> {name}", flush=True)
    began = time.monotonic()
    section: Section = importlib.import_module(f"proof.{name}").prove(quick=quick)
    print(section.markdown())
    print(f"{name}: {'held' if section.held else 'DID NOT HOLD'} after {time.monotonic() - began:.0f} s", flush=True)
    return section


def _write(sections: list[Section], *, minutes: float) -> None:
    head = HEAD.format(
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        python=platform.python_version(),
        machine=f"{platform.system()} {platform.machine()}",
        minutes=round(minutes),
    )
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text("\n".join([head, *(section.markdown() for section in sections)]))
    print(f"The report is in {REPORT}")


if __name__ == "__main__":
    main()
