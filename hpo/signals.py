"""SIGTERM and SIGINT as an event that a loop can look at."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

_STOPPING = (signal.SIGTERM, signal.SIGINT)
SECOND_SIGNAL_EXIT = 130
STOPPED_EXIT = 0


@dataclass
class Leave:
    """How a process leaves that was asked to stop, when its main thread does not come to it in time."""

    within_s: float | None = None
    """From the first signal; None waits for the main thread, however long it takes."""
    last_act: Callable[[], None] | None = None
    """Done then, by another thread: it must not wait for the main one."""
    act_s: float = 2.0
    """How long that may take."""
    first: Callable[[], None] | None = None
    """Done at the first signal, at once."""
    second: Callable[[], None] | None = None
    """Done at the second signal."""

    def in_time(self, within_s: float) -> None:
        """Wait until it is time, and end the process in order."""
        time.sleep(within_s)
        if self.last_act is not None:
            acting = threading.Thread(target=self.last_act, name="last-act", daemon=True)
            acting.start()
            acting.join(self.act_s)
        logger.warning("stopped in the middle of a long step", extra={"action": "stopped_in_time"})
        os._exit(STOPPED_EXIT)


def stop_on_signal(leave: Leave | None = None) -> threading.Event:
    """
    Return an event that the first SIGTERM or SIGINT sets; a second one ends the process at once with 130.

    A Python signal handler waits for the C call under way, which may be a step of many seconds; a thread in `sigwait` does
    not. Call it before any other thread starts: they must inherit the mask. With *leave* the process is gone in time,
    whatever its main thread does.
    """
    stop = threading.Event()
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)

    def wait() -> None:
        first = signal.sigwait(_STOPPING)
        logger.warning("%s: saving and stopping", signal.Signals(first).name, extra={"action": "stopping"})
        stop.set()
        if leave is not None and leave.first is not None:
            leave.first()
        if leave is not None and leave.within_s is not None:
            threading.Thread(target=leave.in_time, args=(leave.within_s,), name="leave", daemon=True).start()
        signal.sigwait(_STOPPING)
        if leave is not None and leave.second is not None:
            leave.second()
        os._exit(SECOND_SIGNAL_EXIT)

    threading.Thread(target=wait, name="signals", daemon=True).start()
    return stop
