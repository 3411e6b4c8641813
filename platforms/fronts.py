"""Has packages import their parts when somebody asks for them.

`llama_index.core`, `openai.types` and others are fronts: modules that import hundreds of others, so that their names
are all in one place. One name costs the import of them all. Here each such `from .part import Name` of a front becomes
an entry of a table, and the module's `__getattr__` (PEP 562) imports the part when the name is first asked for. All
names are there, and are the same things; only what nobody asks for is not imported.

Left as they are: modules with any code of their own (functions, classes), imports of other packages, and names that the
rest of the module reads, or that are those of a part too, which the import system would set in their place. Of the
modules in `LENDERS` alone it is known that they have code, and import names of other packages for others to find there.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

FRONTS = (
    "aws_lambda_powertools",  # resolvers for AppSync, Bedrock and VPC Lattice; parameters from AppConfig
    "llama_index/core",  # indices, retrievers, query engines
    "llama_index/llms",  # OpenAI's Responses API
    "openai",  # clients and types of all of OpenAI's API, some 900 modules
)

LENDERS = (
    "s3transfer/compat.py",  # managers of multiprocessing, for downloads by several processes
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
    """Rewrite the fronts and the lenders that a folder has."""
    for front in FRONTS:
        for file in sorted((folder / front).rglob("__init__.py")):
            package = ".".join(file.parent.relative_to(folder).parts)
            _rewrite(file, partial(late, package=package, parts=_parts(file.parent)))
    for lender in LENDERS:
        if (folder / lender).exists():
            _rewrite(folder / lender, lent_late)


def late(source: str, package: str, parts: set[str]) -> str:
    """The source of a front that imports late; the lines that stay keep their numbers."""
    tree = ast.parse(source)
    if any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in ast.walk(tree)):
        return source
    own = [node for node in _imports(tree) if _is_own(node, package)]
    return _without(source, own, stays=parts | _read(tree))


def lent_late(source: str) -> str:
    """The source of a lender that imports late what it does not read."""
    tree = ast.parse(source)
    return _without(source, _imports(tree), stays=_read(tree))


def _without(source: str, imports: Iterable[ast.ImportFrom], *, stays: set[str]) -> str:
    """Without the imports of which no name has to stay, and with what makes them later."""
    moved = [node for node in imports if not stays & {_name(alias) for alias in node.names}]
    if not moved:
        return source
    lines = source.splitlines()
    for node in moved:
        lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or node.lineno) - node.lineno + 1)
    places = {
        _name(alias): ("." * node.level + (node.module or ""), alias.name) for node in moved for alias in node.names
    }
    return "\n".join(lines) + ASKING.format(late=places)


def _imports(tree: ast.Module) -> Iterator[ast.ImportFrom]:
    """The statements at the top of a module that import names."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module != "__future__" and node.names[0].name != "*":
            yield node


def _is_own(node: ast.ImportFrom, package: str) -> bool:
    """Whether the names come from the package that imports them."""
    return node.level == 1 or (not node.level and (node.module or "").partition(".")[0] == package.partition(".")[0])


def _read(tree: ast.Module) -> set[str]:
    """The names that a module reads."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _rewrite(file: Path, change: Callable[[str], str]) -> None:
    source = file.read_text()
    if (changed := change(source)) != source:
        file.write_text(changed)


def _name(alias: ast.alias) -> str:
    return alias.asname or alias.name


def _parts(package: Path) -> set[str]:
    """The modules that a package holds."""
    return {entry.name.partition(".")[0] for entry in package.iterdir()}
