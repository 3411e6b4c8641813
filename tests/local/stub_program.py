"""`python -m local` over the stub handlers: the functions keep their names, and run other code."""

from typing import Any

from processes import STUB, STUB_SWEEP

from local import __main__ as program
from local.functions import SWEEP
from local.pool import WorkerPool


def stubbed(*, handler: str, **settings: Any) -> WorkerPool:
    return WorkerPool(handler=STUB_SWEEP if handler == SWEEP else STUB, **settings)


if __name__ == "__main__":
    program.WorkerPool = stubbed  # type: ignore[assignment, misc]
    program.main()
