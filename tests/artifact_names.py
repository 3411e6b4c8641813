"""Asks every front of an artifact for all that it imports late: `python -I -S artifact_names.py FOLDER`.

Prints the names that are not to be had, one a line with the error. Some never were: they need a package that is not
locked, and was never there.
"""

import ast
import importlib
import re
import sys
from pathlib import Path

LATE = re.compile(r"def __getattr__\(name, _late=(\{.*\})\):")


def main() -> None:
    folder = Path(sys.argv[1])
    sys.path.insert(0, str(folder))
    for file in sorted(folder.rglob("__init__.py")):
        if found := LATE.search(file.read_text()):
            front = ".".join(file.parent.relative_to(folder).parts)
            for name in ast.literal_eval(found[1]):
                ask(folder, front, name)


def ask(folder: Path, front: str, name: str) -> None:
    try:
        getattr(importlib.import_module(front), name)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if (folder / package).exists() or (folder / f"{package}.py").exists():
            sys.stdout.write(f"{front}.{name}: {error}\n")
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one, all others are tried
        sys.stdout.write(f"{front}.{name}: {type(error).__name__}: {error}\n")


if __name__ == "__main__":
    main()
