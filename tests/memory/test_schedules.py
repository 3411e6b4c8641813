"""The log's promises in random schedules: a fixed number of those that `python -m proof model` runs for minutes."""

import pytest

from proof import lies, model
from proof.broken import ROOT
from proof.shelf import Shelf

ON_THE_ENGINE, IN_MEMORY = 5, 12


@pytest.mark.once
@pytest.mark.parametrize("row", model.ROWS)
def test_no_promise_is_broken_on_a_real_engine(dynoxide: str, row: str) -> None:
    """Whatever happens between any two calls. `python -m proof.model --row ROW --seed SEED` replays what fails."""
    assert model.tally(row, range(ON_THE_ENGINE), dynoxide).failed == {}


@pytest.mark.once
@pytest.mark.parametrize("row", model.ROWS)
def test_no_promise_is_broken_in_memory(row: str) -> None:
    """The same in other schedules, on a table that is a dictionary."""
    assert model.tally(row, range(1000, 1000 + IN_MEMORY), None).failed == {}


@pytest.mark.parametrize("row", ["late packets", "everything"])
def test_a_seed_is_one_schedule_on_every_table(dynoxide: str, row: str) -> None:
    """The table in memory does call by call what the engine does, and a schedule can be replayed."""
    for seed in range(4):
        traces = [model.run(row, seed, client)[1].trace for client in (Shelf(), Shelf(), model.client_at(dynoxide))]
        assert traces[0] == traces[1] == traces[2]


@pytest.mark.parametrize("lie", lies.LIES, ids=lambda lie: lie.name)
def test_each_lie_changes_what_is_there(lie: lies.Lie) -> None:
    """The mutants are of the log as it is now."""
    assert lie.old in (ROOT / lie.change.file).read_text()


@pytest.mark.once
def test_a_lie_is_caught() -> None:
    """The schedules find what is broken on purpose."""
    assert lies.caught(lies.LIES[0], 20)
