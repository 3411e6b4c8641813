"""The mutations that `make prove` has tests notice are of the code as it is, and so are the tests."""

import pytest

from proof.broken import ROOT
from proof.mutations import MUTATIONS, Mutation, claim, is_caught


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_mutation_changes_what_is_there(mutation: Mutation) -> None:
    """What it breaks is in the code, and the test that notices is a test that makes a claim."""
    assert mutation.change.old in (ROOT / mutation.change.file).read_text()
    file, _, name = mutation.test.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text()
    assert claim(mutation.test)


@pytest.mark.once
@pytest.mark.timeout(300)  # it starts another pytest
def test_a_mutation_is_caught() -> None:
    """The test that is named fails once the guarantee is broken."""
    assert is_caught(next(mutation for mutation in MUTATIONS if mutation.guarantee == "isolated"))
