"""Makes what is deployed of a folder that holds the locked packages and this project: `python -m platforms.artifact`.

Lambda unpacks 250 MiB at the most, and its disk is read-only: what has no bytecode is compiled anew at every start. So
this leaves out what nothing here reads, has packages import their parts at first use (`fronts.py`), and puts bytecode
beside every module (`bytecode.py`).

All that is left out is listed here, with the reason, and can be kept: `[tool.rehydrate.artifact]` in pyproject.toml
names the parts that stay, and the services of AWS that boto3 knows. An import in `handlers/` or `memory/` that would
find nothing ends the build; any other one says what to do when it is reached.
"""

import argparse
import ast
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from platforms import bytecode, fronts

ROOT = Path(__file__).resolve().parent.parent
OWN = ("handlers", "memory")


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is left out, and why: whole packages, which say so when they are imported, and files by their patterns."""

    name: str
    why: str
    packages: str = ""
    files: str = ""


PARTS = (
    Part(
        name="aiohttp",
        why="LlamaIndex requires it and never imports it; OpenAI's client has httpx",
        packages="aiohttp aiohappyeyeballs aiosignal frozenlist multidict propcache yarl",
    ),
    Part(name="networkx", why="draws and searches LlamaIndex's property graphs", packages="networkx"),
    Part(
        name="nltk",
        why="splits documents into sentences, for an index that is built of them; with data for 18 languages",
        packages="nltk joblib defusedxml",
        files="llama_index/core/_static/nltk_cache",
    ),
    Part(
        name="setuptools",
        why="installs packages",
        packages="setuptools",
        files="_distutils_hack distutils-precedence.pth",
    ),
    Part(
        name="boto3",
        why="resources of services other than DynamoDB, and examples of its documentation; clients need neither",
        files="boto3/data/[!d]* boto3/examples",
    ),
    Part(
        name="numpy",
        why="its bridge to Fortran, headers, libraries to link with, and modules in C that only its tests load",
        files="numpy/f2py numpy/_core/include numpy/*/lib numpy/_core/_*_tests.* numpy/_core/_simd.*",
    ),
    Part(
        name="pillow",
        why="AVIF and the drawing of text; LlamaIndex imports the rest",
        files="PIL/_avif.* PIL/_imagingft.* PIL/_imagingtk.* "
        "pillow.libs/libavif-* pillow.libs/libfreetype-* pillow.libs/libharfbuzz-*",
    ),
    Part(
        name="powertools",
        why="the page that shows an API in a browser",
        files="aws_lambda_powertools/event_handler/openapi/swagger_ui/*.js "
        "aws_lambda_powertools/event_handler/openapi/swagger_ui/*.css",
    ),
    Part(
        name="sqlalchemy",
        why="databases whose drivers are not here, and the tools of its own tests",
        files="sqlalchemy/dialects/mssql sqlalchemy/dialects/mysql sqlalchemy/dialects/oracle sqlalchemy/testing",
    ),
    Part(name="tests", why="tests of packages", files="*/**/tests */**/test"),
    Part(
        name="types",
        why="what type checkers and compilers read; not .md, which prompts of LlamaIndex are",
        files="*-stubs include */**/*.pyi */**/*.pyx */**/*.pxd */**/*.pxi */**/*.c */**/*.cpp */**/*.h */**/*.hpp",
    ),
    Part(
        name="installing",
        why="scripts, and notes of who installed which files: those files are not all there any more",
        files="bin .lock *.dist-info/INSTALLER *.dist-info/RECORD *.dist-info/REQUESTED *.dist-info/sboms",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a project has chosen in `[tool.rehydrate.artifact]`."""

    keep: frozenset[str]
    services: frozenset[str]

    @classmethod
    def of(cls, pyproject: Path) -> "Choice":
        """Read it. Ends the build where it names a part that is none."""
        given = tomllib.loads(pyproject.read_text())["tool"]["rehydrate"]["artifact"]
        if unknown := set(given["keep"]) - {part.name for part in PARTS}:
            known = ", ".join(part.name for part in PARTS)
            sys.exit(f"pyproject.toml keeps {', '.join(sorted(unknown))}; the artifact leaves out {known}")
        return cls(keep=frozenset(given["keep"]), services=frozenset(given["services"]))

    @property
    def parts(self) -> list[Part]:
        """The parts that are left out."""
        return [part for part in PARTS if part.name not in self.keep]


def main() -> None:
    """Make the folder what is deployed."""
    parser = argparse.ArgumentParser(prog="python -m platforms.artifact")
    parser.add_argument("folder", type=Path, help="with the locked packages, handlers and memory")
    parser.add_argument("--python", help="a Python 3.13 that compiles; without, one is looked for")
    given = parser.parse_args()
    folder, choice = given.folder.resolve(), Choice.of(ROOT / "pyproject.toml")
    leave_out(folder, choice)
    if lacking := list(lacking_in(folder, choice)):
        sys.exit("\n".join(lacking))
    fronts.open_late(folder)
    bytecode.write(folder, given.python)


def leave_out(folder: Path, choice: Choice) -> None:
    """Remove the parts, and the services of AWS that are not chosen."""
    for part in choice.parts:
        for pattern in part.files.split():
            for path in list(folder.glob(pattern)):
                _remove(path)
        for package in part.packages.split():
            if (folder / package).exists():
                _remove(folder / package)
                (folder / f"{package}.py").write_text(_says_so(package, part))
            for metadata in folder.glob(f"{package}-*.dist-info"):
                _remove(metadata)
    for service in (folder / "botocore" / "data").iterdir():
        if service.is_dir() and service.name not in choice.services:
            _remove(service)


def lacking_in(folder: Path, choice: Choice) -> Iterator[str]:
    """What this project's own modules ask for, and would not find in the artifact."""
    owners = {package: part.name for part in choice.parts for package in part.packages.split()}
    for file in (file for package in OWN for file in sorted((folder / package).rglob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text())):
            at = f"{file.relative_to(folder)}:{getattr(node, 'lineno', 0)}"
            for package in _imports(node) & owners.keys():
                yield (
                    f"{at} imports {package}, which the artifact leaves out. To keep it, add {owners[package]!r} to "
                    "`keep` in [tool.rehydrate.artifact] of pyproject.toml."
                )
            service = _service(node)
            if service and service not in choice.services:
                yield (
                    f"{at} calls the service {service}, which the artifact's boto3 does not know. Add it to `services` "
                    "in [tool.rehydrate.artifact] of pyproject.toml."
                )


def _imports(node: ast.AST) -> set[str]:
    """The packages that a statement imports."""
    if isinstance(node, ast.Import):
        return {name.name.partition(".")[0] for name in node.names}
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").partition(".")[0]}
    return set()


def _service(node: ast.AST) -> str | None:
    """The service of AWS that a call names: `boto3.client("s3")`, or `resource`, of boto3 or a session."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("client", "resource"):
        match node.args:
            case [ast.Constant(value=str(service)), *_]:
                return service
    return None


def _says_so(package: str, part: Part) -> str:
    """A module in a package's place."""
    text = (
        f"{package} is not in this artifact ({part.why}). To keep it, add {part.name!r} to `keep` in "
        "[tool.rehydrate.artifact] of pyproject.toml, and build again."
    )
    return f"raise ModuleNotFoundError({text!r}, name={package!r})\n"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():  # else it went with a folder above it
        path.unlink()


if __name__ == "__main__":
    main()
