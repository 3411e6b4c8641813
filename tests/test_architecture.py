"""Who may import whom, and that the tests that share a process do."""

import ast
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted([*ROOT.glob("handlers/*.py"), *ROOT.glob("memory/*.py")])
LAYERS = [
    "memory.turns",
    "memory.codec",
    "memory.shortening",
    "memory.reading",
    "memory.table",
    "memory.items",
    "memory.allowance",
    "memory.dynamodb",
    "memory.sessions",
    "memory.chat_store",
]


def imports(file: Path) -> set[str]:
    """Full names of the modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names} | {str(node.module)}
    return found


def importers(package: str) -> set[str]:
    """The modules that import a package."""
    return {
        f"{file.parent.name}.{file.stem}"
        for file in MODULES
        if any(name == package or name.startswith(f"{package}.") for name in imports(file))
    }


def test_memory_knows_no_lambda_and_no_http() -> None:
    """`memory` imports neither the handlers nor what they are made with."""
    for package in ("handlers", "aws_lambda_powertools", "local"):
        assert {name for name in importers(package) if name.startswith("memory.")} == set()


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_import_downwards(layer: str) -> None:
    """Each module of `memory` imports only those that stand before it."""
    above = set(LAYERS[LAYERS.index(layer) :])
    assert imports(ROOT / f"{layer.replace('.', '/')}.py") & above == set()


def test_one_module_calls_aws() -> None:
    """Only the table's module imports boto3."""
    assert importers("boto3") == {"memory.table"}


def test_one_module_of_memory_knows_llama_index() -> None:
    """The log, its codec and its table work without LlamaIndex, and start without it."""
    assert {name for name in importers("llama_index") if name.startswith("memory.")} == {"memory.chat_store"}


def test_the_turn_knows_no_http() -> None:
    """The conversation, its agent and its run could be behind any front."""
    modules = ("conversation", "run", "agent", "model", "model_answer", "model_errors", "prompt", "tools", "results")
    for module in (*modules, "structured", "surrogates", "provider_fields"):
        assert not any("event_handler" in name or "request" in name for name in imports(ROOT / f"handlers/{module}.py"))


def test_the_turn_knows_no_aws() -> None:
    """The steps of a turn are traced by what the chat function hands in; no other function loads what traces."""
    assert not any(name.startswith(("aws", "boto")) for name in imports(ROOT / "handlers/conversation.py"))
    assert importers("handlers.tracing") == {"handlers.chat", "handlers.snapshot"}
    assert importers("aws_lambda_powertools.Tracer") == {"handlers.tracing"}


def test_one_module_reads_the_environment() -> None:
    """`os.environ` stands in the settings alone."""
    assert importers("os") == {"handlers.settings"}


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process runs all tests")
@pytest.mark.xdist_group("any")
def test_a_group_of_tests_runs_in_one_process(request: pytest.FixtureRequest) -> None:
    """Tests are handed out by the name of their group: else each process would start the same stack for itself."""
    assert request.node.nodeid.endswith("@any")
