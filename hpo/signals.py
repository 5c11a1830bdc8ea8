"""SIGTERM and SIGINT as an event that a loop can look at."""

from __future__ import annotations

import logging
import os
import signal
import threading

logger = logging.getLogger(__name__)

_STOPPING = (signal.SIGTERM, signal.SIGINT)
SECOND_SIGNAL_EXIT = 130


def stop_on_signal() -> threading.Event:
    """
    Return an event that the first SIGTERM or SIGINT sets; a second one ends the process at once with 130.

    A Python signal handler waits for the C call under way, which may be a step of many seconds; a thread in `sigwait` does
    not. Call it before any other thread starts: they must inherit the mask.
    """
    stop = threading.Event()
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)

    def wait() -> None:
        first = signal.sigwait(_STOPPING)
        logger.warning("%s: saving and stopping", signal.Signals(first).name, extra={"action": "stopping"})
        stop.set()
        signal.sigwait(_STOPPING)
        os._exit(SECOND_SIGNAL_EXIT)

    threading.Thread(target=wait, name="signals", daemon=True).start()
    return stop
