"""What is to be told to the database while the work goes on: nobody waits for it, and nothing of it is forgotten."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait


class Outbox:
    """
    Calls made one after the other by a thread of its own.

    Each call waits by itself for a database that is away. What one of them raises is raised again by the next use of the
    outbox, and the calls behind it are dropped: the trial is somebody else's by then, or the database gone for too long.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "outbox")
        self._calls: deque[Future[None]] = deque()
        self._broken = False

    def put(self, call: Callable[[], None]) -> None:
        """Let *call* be made soon. Raises what an earlier one raised."""
        self._collect()
        self._calls.append(self._thread.submit(self._make, call))

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until all calls are made, or for so long; return whether they are. Raises what one of them raised."""
        wait(self._calls, timeout_s, FIRST_EXCEPTION)
        self._collect()
        return not self._calls

    def _make(self, call: Callable[[], None]) -> None:
        """Make *call*, unless one before it failed: to wait for each of many in turn would hold up the process's end."""
        if not self._broken:
            self._broken = True  # until it is through
            call()
            self._broken = False

    def _collect(self) -> None:
        """Forget the calls that are made. Raises what the first of them raised."""
        while self._calls and self._calls[0].done():
            self._calls[0].result()
            self._calls.popleft()
