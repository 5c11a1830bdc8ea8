"""What is to be told to the database while the work goes on: nobody waits for it, and nothing of it is forgotten."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from storage.errors import StorageError

_IDLE_S = 60.0
"""A thread that has had nothing to do for so long ends."""


class Outbox:
    """
    Calls made one after the other by a thread of its own.

    Each call waits by itself for a database that is away. What one of them raises is raised again by the next use of the
    outbox, and the calls behind it are dropped: the trial is somebody else's by then, or the database gone for too long.
    """

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._error: StorageError | None = None
        self._thread: threading.Thread | None = None

    def put(self, call: Callable[[], None]) -> None:
        """Let *call* be made soon. Raises what an earlier one raised."""
        with self._changed:
            self._check()
            self._calls.append(call)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until all calls are made, or for so long; return whether they are. Raises what one of them raised."""
        with self._changed:
            self._changed.wait_for(lambda: not self._calls or self._error is not None, timeout_s)
            self._check()
            return not self._calls

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: bool(self._calls), timeout=_IDLE_S):
                    self._thread = None  # the next call starts another one
                    return
                call = self._calls[0]
            error = None
            try:
                call()
            except StorageError as raised:
                error = raised
            with self._changed:
                self._error = self._error or error
                self._calls.popleft() if error is None else self._calls.clear()
                self._changed.notify_all()
