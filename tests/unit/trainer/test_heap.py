"""What is freed is kept for the next step, and given back when it is asked for."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import torch

from trainer.heap import give_back, keep_freed

SIZE = 64 * 2**20


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def use() -> None:
    """Allocate and fill a large tensor, and free it."""
    torch.empty(SIZE, dtype=torch.uint8).fill_(1)


def test_what_is_freed_is_used_again_without_a_fault() -> None:
    """Once the heap has grown to what is needed, the system hands out no page more; after it was given back, it is not ours."""
    keep_freed()
    for _ in range(20):
        use()
    before, held = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, resident()
    for _ in range(5):
        use()
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 100
    )  # else 5 times 32 pages of 2 MiB, or 16384 of 4 KiB
    give_back()
    assert resident() < held - SIZE // 2
