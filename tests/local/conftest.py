"""Fixtures of the tests of `local/`."""

from collections.abc import Iterator

import pytest
from processes import RunningGateway, running_gateway


@pytest.fixture(scope="module")
def gateway() -> Iterator[RunningGateway]:
    """Two workers; for tests that leave them alive and idle."""
    with running_gateway(workers=2) as running:
        yield running
