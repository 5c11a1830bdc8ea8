"""What is going on, as it goes on: bars and tables that change on a terminal, lines now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from hpo.status import Status, is_over
from hpo.tables import status_line, status_view
from trainer.data.progress import Stage

logger = logging.getLogger(__name__)


@contextmanager
def opening_progress(console: Console) -> Iterator[Callable[[Stage, int, int], None]]:
    """Give a function that shows how far an opening is, and the time left: a bar on a terminal, a line now and then elsewhere."""
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar, _log_lines_above():
            tasks: dict[Stage, TaskID] = {}

            def show(stage: Stage, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bar.add_task(stage)
                bar.update(tasks[stage], completed=done, total=total)

            yield show
        return
    yield _Lines().say


class _Lines:
    """Progress as log lines, at most one in a while."""

    _EVERY_S = 30.0

    def __init__(self) -> None:
        self._stage: Stage | None = None
        self._began_at = self._said_at = 0.0
        self._began_with = 0

    def say(self, stage: Stage, done: int, total: int) -> None:
        """Take notice of *done* of *total* files, and log it if nothing was logged for a while."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began_at, self._said_at, self._began_with = stage, now, now, done
        if now < self._said_at + self._EVERY_S or done == self._began_with:
            return
        self._said_at = now
        left_s = (total - done) * (now - self._began_at) / (done - self._began_with)
        logger.info(
            "%s: %d of %d files, about %s left", stage, done, total, timedelta(seconds=round(left_s)),
            extra={"action": stage},
        )  # fmt: skip


@contextmanager
def live_status(console: Console, tell: Callable[[Status], None] | None = None) -> Iterator[Callable[[Status], None]]:
    """
    Give a function that shows how far a study is: a table on a terminal, which stays, and elsewhere every change.

    Args:
        console: Where the table goes.
        tell: What is done at a change where there is no terminal; None logs a line.
    """
    if not console.is_terminal:
        yield at_changes(tell or _log, _milestones)
        return
    with Live(console=console, auto_refresh=False) as live, _log_lines_above():
        # The empty line at the end is where a terminal writes ^C: behind a full one it would push everything down.
        yield lambda status: live.update(Group(status_view(status, datetime.now(UTC)), ""), refresh=True)


def at_changes(tell: Callable[[Status], None], key: Callable[[Status], object]) -> Callable[[Status], None]:
    """Return a function that passes on a status whose *key* is another one than that of the last."""
    said: object = None
    at_work = 0

    def look(status: Status) -> None:
        nonlocal said, at_work
        fewer, at_work = len(status.workers) < at_work, len(status.workers)
        if fewer and not is_over(status):
            return  # between two trials a worker holds none for a moment; one that left is missing at the next look too
        if (news := key(status)) != said:
            said = news
            tell(status)

    return look


def _milestones(status: Status) -> object:
    best = None if status.best is None else status.best.number
    return status.state, status.budget.spent, status.budget.asked, len(status.workers), best


def _log(status: Status) -> None:
    logger.info("%s", status_line(status), extra={"action": "progress", "study": status.study})


@contextmanager
def _log_lines_above() -> Iterator[None]:
    """Send the log lines of this terminal through what `Live` has put in the place of standard error: above it, not into it."""
    handlers = [each for each in logging.getLogger().handlers if isinstance(each, logging.StreamHandler)]
    streams = [(each, each.setStream(sys.stderr)) for each in handlers if each.stream.isatty()]
    try:
        yield
    finally:
        for handler, stream in streams:
            if stream is not None:
                handler.setStream(stream)
