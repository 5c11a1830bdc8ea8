"""The launcher's plan: one process per slot, each with its device and its share of the processor."""

from __future__ import annotations

import pytest

from hpo.launcher import Slot, plan


@pytest.mark.parametrize(
    ("workers", "per_gpu", "gpus", "cores", "slots"),
    [
        (None, 1, [], 2, [Slot(0, None, 2)]),
        (None, 1, [], 8, [Slot(0, None, 4), Slot(1, None, 4)]),
        (2, 1, [], 2, [Slot(0, None, 1), Slot(1, None, 1)]),
        (4, 1, [], 2, [Slot(index, None, 1) for index in range(4)]),
        (None, 1, ["0", "1"], 16, [Slot(0, "0", 8), Slot(1, "1", 8)]),
        (None, 2, ["0", "1"], 16, [Slot(0, "0", 4), Slot(1, "1", 4), Slot(2, "0", 4), Slot(3, "1", 4)]),
        (1, 1, ["0", "1"], 16, [Slot(0, "0", 16)]),
    ],
)
def test_plan(workers: int | None, per_gpu: int, gpus: list[str], cores: int, slots: list[Slot]) -> None:
    """Workers are spread over the GPUs in turn; threads are shared evenly, at least one each."""
    assert plan(workers, per_gpu, gpus, cores) == slots
