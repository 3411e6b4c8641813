"""What `make prove` runs: the proofs one after the other, and the report that they are written to.

`python -m proof` runs all of them at full length; `python -m proof races crashes` some, and writes their sections
of the report anew; `--quick` each in a minute or so, without touching the report.
"""

import argparse
import importlib
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

from proof import report
from proof.section import Section

PROOFS = ("races", "model", "mutations", "faults", "crashes", "hostile", "abuse", "soak")
REPORT = Path(__file__).parent.parent / "docs" / "PROOF.md"


def main() -> None:
    """Exit code 1 where something did not hold."""
    parser = argparse.ArgumentParser(prog="python -m proof", description=__doc__)
    parser.add_argument("proofs", nargs="*", metavar="proof", help=f"which ones: {', '.join(PROOFS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="a minute or so for each; the report is left alone")
    options = parser.parse_args()
    if unknown := set(options.proofs) - set(PROOFS):
        parser.error(f"there is no proof called {', '.join(sorted(unknown))}; there are {', '.join(PROOFS)}")
    held = True
    for name in options.proofs or PROOFS:
        held &= _run(name, quick=options.quick).held
    raise SystemExit(0 if held else 1)


def _run(name: str, *, quick: bool) -> Section:
    print(f"==> {name}", flush=True)
    began = time.monotonic()
    section: Section = importlib.import_module(f"proof.{name}").prove(quick=quick)
    minutes = (time.monotonic() - began) / 60
    print(section.markdown())
    print(f"{name}: {'held' if section.held else 'DID NOT HOLD'} after {minutes:.1f} min", flush=True)
    if not quick:
        old = REPORT.read_text() if REPORT.exists() else ""
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(report.with_section(old, name, section.markdown(_ran(minutes)), PROOFS))
        print(f"The report is in {REPORT}", flush=True)
    return section


def _ran(minutes: float) -> str:
    """When, where and on what a proof ran."""
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {minutes:.0f} minutes, on {report.revision()}, Python "
        f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    )


if __name__ == "__main__":
    main()
