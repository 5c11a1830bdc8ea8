"""`run.log`: what is said while a run is trained, kept beside its files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class _RunLog(logging.FileHandler):
    """A log that may end early: on a full disk the files of the run say so, once, and not every line of its log."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Drop the line."""


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Write every log line of this process into the file at *path* too, while the block runs."""
    handler = _RunLog(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
