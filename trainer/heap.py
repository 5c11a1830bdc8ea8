"""
The C library's heap, while steps are computed on the processor.

glibc gives every large tensor back to the system and faults it in again, zeroed, at the next step: a fifth of a step at 384 px,
half of one at 512 px. To keep them takes about a fifth more memory. Elsewhere than on glibc nothing is done.
"""

from __future__ import annotations

import ctypes
from typing import Any

_C: Any = ctypes.CDLL(None)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of mallopt, from malloc.h
_NEVER = -1
_PAD_BYTES = 1 << 28


def keep_freed() -> None:
    """Keep what this process frees for what it allocates next, from now on."""
    if hasattr(_C, "mallopt"):
        _C.mallopt(_MMAP_MAX, 0)
        _C.mallopt(_TRIM_THRESHOLD, _NEVER)
        _C.mallopt(_TOP_PAD, _PAD_BYTES)


def give_back() -> None:
    """Give what this process has freed back to the system, so that it counts as free there."""
    if hasattr(_C, "malloc_trim"):
        _C.malloc_trim(0)
