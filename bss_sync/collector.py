"""The garbage collector out of the way, in processes that only work."""

from __future__ import annotations

import gc

COLLECT_ALLOCATIONS = 50_000
"""Objects that are made, and not freed, between two looks of the garbage collector: those of a few batches."""


def settle_memory(allocations: int = COLLECT_ALLOCATIONS) -> None:
    """Take what was made at the start out of the collector's sight, for a process that only works.

    A batch makes tens of thousands of objects that all live to its end and leave no cycles: looking through them again
    and again, and through every module's, took a quarter of a worker's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(allocations, 20, 50)
