"""Puts bytecode beside every module of an artifact.

Unchecked: Lambda gives the files times of its own, and nothing there could write better bytecode. The paths in it are
Lambda's, so that a traceback shows them, and not those of whoever built.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

VERSION = "3.13"
"""Of the runtime in template.yaml: other versions cannot read each other's bytecode."""
AT_LAMBDA = "/var/task"

WITHOUT = f"""\
No Python {VERSION} was found here, so this build has no bytecode. It works, but Lambda compiles every module anew at
each start, which then takes about twice as long. Install Python {VERSION} (apt, Homebrew, pyenv or uv have it), or name
one with PYTHON_LAMBDA=/path/to/python{VERSION}, and build again."""


def write(folder: Path, named: str | None) -> None:
    """Compile everything in a folder; without a Python that can, say what that costs. Ends the build where it fails."""
    python = find_python(named)
    if python is None and named:
        sys.exit(f"PYTHON_LAMBDA={named} is no Python {VERSION}")
    if python is None:
        print(WITHOUT, file=sys.stderr)
        return
    command = [python, "-I", "-m", "compileall", "-q", "-f", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    command += ["-s", str(folder), "-p", AT_LAMBDA, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2_000:]}")


def find_python(named: str | None = None) -> str | None:
    """A Python of the runtime's version that really runs: pyenv's shims exist for versions that are not selected."""
    return next((python for python in ([named] if named else _candidates()) if _version(python) == VERSION), None)


def _candidates() -> Iterator[str]:
    """This one, then what PATH, pyenv and uv have."""
    yield sys.executable
    name = f"python{VERSION}"
    for folder in os.get_exec_path():
        if found := shutil.which(name, path=folder):
            yield found
    homes = (Path(os.environ.get("PYENV_ROOT", "~/.pyenv")), Path("~/.local/share/uv/python"))
    for home in homes:
        yield from sorted(str(found) for found in home.expanduser().glob(f"**/*{VERSION}*/bin/{name}"))


def _version(python: str) -> str | None:
    """The version that a program says it is; None where it does not run."""
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
