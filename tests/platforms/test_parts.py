"""What a build leaves out of an artifact, and how it says so."""

import subprocess
import sys
from pathlib import Path

import pytest

from platforms import artifact, bytecode, fronts
from platforms.artifact import Choice

NOTHING_KEPT = Choice(keep=frozenset(), services=frozenset({"dynamodb"}))


def python(folder: Path, code: str) -> str:
    """What a program prints that finds its packages in a folder; or the last line of what went wrong."""
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a program of the tests
    return (done.stdout or done.stderr.splitlines()[-1]).strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Packages, as they are installed: one that is left out, one that is not, and a service of AWS."""
    for file in ("nltk/__init__.py", "kept/__init__.py", "kept/tests/test_it.py", "handlers/agent.py", "memory/a.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    for service in ("dynamodb", "s3"):
        (tmp_path / "botocore" / "data" / service).mkdir(parents=True)
    return tmp_path


def test_what_nobody_reads_is_left_out(folder: Path) -> None:
    """Packages, tests of packages, and services that were not chosen; nothing else."""
    artifact.leave_out(folder, NOTHING_KEPT)
    assert not (folder / "kept" / "tests").exists()
    assert (folder / "kept" / "__init__.py").exists()
    assert [service.name for service in (folder / "botocore" / "data").iterdir()] == ["dynamodb"]


def test_a_package_that_was_left_out_says_how_to_keep_it(folder: Path) -> None:
    """Whoever imports it is told where to say so, and that it is not there: an import that may fail still may."""
    artifact.leave_out(folder, NOTHING_KEPT)
    said = python(folder, "import nltk")
    assert said.startswith("ModuleNotFoundError")
    assert "keep" in said
    assert "pyproject.toml" in said


def test_what_a_project_keeps_stays(folder: Path) -> None:
    """A part that is named in pyproject.toml is shipped."""
    artifact.leave_out(folder, Choice(keep=frozenset({"nltk"}), services=NOTHING_KEPT.services))
    assert python(folder, "import nltk; print('there')") == "there"


def test_a_part_that_is_none_ends_the_build(tmp_path: Path) -> None:
    """A name that is misspelt would keep nothing."""
    (tmp_path / "pyproject.toml").write_text('[tool.rehydrate.artifact]\nkeep = ["nltkk"]\nservices = []\n')
    with pytest.raises(SystemExit, match="nltkk"):
        Choice.of(tmp_path / "pyproject.toml")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import nltk.tokenize", "nltk"),
        ("def f():\n    from nltk import word_tokenize", "nltk"),
        ("import boto3\nboto3.client('s3')", "s3"),
        ("session.resource('s3')", "s3"),
    ],
)
def test_an_agent_that_needs_what_is_left_out_ends_the_build(folder: Path, code: str, told: str) -> None:
    """It is told at the build what would be an error in production."""
    (folder / "handlers" / "agent.py").write_text(code)
    (fault,) = artifact.lacking_in(folder, NOTHING_KEPT)
    assert "handlers/agent.py" in fault
    assert told in fault


@pytest.fixture
def front(tmp_path: Path) -> Path:
    """A package whose front imports all of its parts."""
    package = tmp_path / "llama_index" / "core"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from llama_index.core.part import Thing, other as another\n__all__ = ['Thing']\n"
    )
    (package / "part.py").write_text("print('imported')\nclass Thing: pass\nother = 7\n")
    (package / "beside.py").write_text("from llama_index.core import Thing\n")
    fronts.open_late(tmp_path)
    return tmp_path


def test_a_front_imports_a_part_when_it_is_asked_for(front: Path) -> None:
    """To import the package costs nothing of its parts."""
    assert python(front, "import llama_index.core; print('nothing')") == "nothing"
    assert python(front, "import llama_index.core as c; print(c.another)").split() == ["imported", "7"]


def test_a_front_has_the_names_that_it_had(front: Path) -> None:
    """They are the same things, by whichever way they are imported; what is none is an error as before."""
    same = "from llama_index.core import Thing; from llama_index.core.beside import Thing as T; print(T is Thing)"
    assert python(front, same).split() == ["imported", "True"]
    assert python(front, "import llama_index.core as c; c.part.Thing") == "imported"
    assert "ImportError" in python(front, "from llama_index.core import nothing")


def test_a_front_with_code_of_its_own_is_left_as_it_is() -> None:
    """What a function or a class there needs when it is called cannot be seen from outside."""
    source = "from package.part import Thing\ndef make():\n    return Thing()\n"
    assert fronts.late(source, "package", set()) == source


def test_a_lender_imports_late_what_it_does_not_read_itself(tmp_path: Path) -> None:
    """What its functions read is imported as before; what others find there, when they ask for it."""
    lender = tmp_path / "s3transfer" / "compat.py"
    lender.parent.mkdir()
    (tmp_path / "lent.py").write_text("print('lent')\nThing = 7\n")
    (tmp_path / "read.py").write_text("print('read')\nother = 8\n")
    lender.write_text("from lent import Thing\nfrom read import other\ndef f():\n    return other\n")
    fronts.open_late(tmp_path)
    assert python(tmp_path, "from s3transfer.compat import f; print(f())").split() == ["read", "8"]
    assert python(tmp_path, "from s3transfer.compat import Thing; print(Thing)").split() == ["read", "lent", "7"]


def test_a_python_of_another_version_compiles_nothing(tmp_path: Path) -> None:
    """Its bytecode would not be read: the build says which one it wants."""
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho 3.9\n")
    other.chmod(0o755)
    assert bytecode.find_python(str(other)) is None
    with pytest.raises(SystemExit, match=r"3\.13"):
        bytecode.write(tmp_path, str(other))
