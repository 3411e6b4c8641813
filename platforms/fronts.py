"""Has packages import their parts when somebody asks for them.

`llama_index.core`, `openai.types` and others are fronts: modules that import hundreds of others, so that their names
are all in one place. One name costs the import of them all. Here each such `from .part import Name` of a front becomes
an entry of a table, and the module's `__getattr__` (PEP 562) imports the part when the name is first asked for. All
names are there, and are the same things; only what nobody asks for is not imported.

Left as they are: modules with any code of their own (functions, classes), imports of other packages, and names that the
rest of the module reads, or that are those of a part too, which the import system would set in their place.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

FRONTS = (
    "aws_lambda_powertools",  # resolvers for AppSync, Bedrock and VPC Lattice; parameters from AppConfig
    "llama_index/core",  # indices, retrievers, query engines
    "llama_index/llms",  # OpenAI's Responses API
    "openai",  # clients and types of all of OpenAI's API, some 900 modules
)

ASKING = """

def __getattr__(name, _late={late!r}):
    from importlib import import_module

    if name in _late:
        part, its_name = _late[name]
        globals()[name] = found = getattr(import_module(part, __name__), its_name)
        return found
    if not name.startswith("__"):
        part = f"{{__name__}}.{{name}}"
        try:
            return import_module(part)
        except ModuleNotFoundError as error:
            if error.name != part:
                raise
    raise AttributeError(f"module {{__name__!r}} has no attribute {{name!r}}", name=name)
"""
"""The end of a front. The parts themselves are attributes of a front that imports them, so they are here too."""


def open_late(folder: Path) -> None:
    """Rewrite the fronts that a folder has."""
    for front in FRONTS:
        for file in sorted((folder / front).rglob("__init__.py")):
            source = file.read_text()
            rewritten = late(source, ".".join(file.parent.relative_to(folder).parts), _parts(file.parent))
            if rewritten != source:
                file.write_text(rewritten)


def late(source: str, package: str, parts: set[str]) -> str:
    """The source of a front that imports late; the lines that stay keep their numbers."""
    tree = ast.parse(source)
    if any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in ast.walk(tree)):
        return source
    stays = parts | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    moved = [node for node in _own_imports(tree, package) if not stays & {_name(alias) for alias in node.names}]
    if not moved:
        return source
    lines = source.splitlines()
    for node in moved:
        lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or node.lineno) - node.lineno + 1)
    places = {
        _name(alias): ("." * node.level + (node.module or ""), alias.name) for node in moved for alias in node.names
    }
    return "\n".join(lines) + ASKING.format(late=places)


def _own_imports(tree: ast.Module, package: str) -> Iterator[ast.ImportFrom]:
    """The statements at the top of a front that import names from the package it belongs to."""
    whole = package.partition(".")[0]
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.names[0].name != "*":
            inside = node.level == 1 or (not node.level and (node.module or "").partition(".")[0] == whole)
            if inside:
                yield node


def _name(alias: ast.alias) -> str:
    return alias.asname or alias.name


def _parts(package: Path) -> set[str]:
    """The modules that a package holds."""
    return {entry.name.partition(".")[0] for entry in package.iterdir()}
