"""How far an opening is, for those who wait for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Stage = Literal["reading", "decoding"]
"""Hashing files and reading their headers; decoding their pixels."""

Progress = Callable[[Stage, int, int], None]
"""Told of the stage, files done and all files, in the process that does the work; nothing is done for files known already."""
