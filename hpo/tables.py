"""Studies and trials as people read them: tables and lines."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pandas as pd
from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from hpo.status import Status
from trainer.data.progress import Stage

if TYPE_CHECKING:
    from trainer.archive_check import ArchiveReport  # draws: half a second of imports, for one command

logger = logging.getLogger(__name__)

_ORDER = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL)


def ranking_table(trials: Sequence[FrozenTrial], title: str) -> Table:
    """Return the trials, the best first and those without a value last, with their fold scores and parameters."""
    ranked = sorted(
        trials,
        key=lambda trial: (_ORDER.index(trial.state), -(trial.value if trial.value is not None else 0), trial.number),
    )
    names = sorted({name for trial in ranked for name in trial.params})
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for heading in ("rank", "trial", "value", "folds"):
        table.add_column(heading, justify="right" if heading != "folds" else "left", no_wrap=True)
    for name in names:
        table.add_column(name, overflow="fold")
    for rank, trial in enumerate(ranked, 1):
        complete = trial.state == TrialState.COMPLETE
        table.add_row(
            str(rank) if complete else "",
            str(trial.number),
            _number(trial.value) if complete else trial.state.name.lower(),
            " ".join(_number(score) for _, score in sorted(trial.intermediate_values.items())),
            *(_shown(trial.params.get(name)) for name in names),
        )
    return table


def status_table(status: Status) -> Table:
    """Return who works on what."""
    best = "none yet" if status.best is None else f"trial {status.best.number} with {_number(status.best.value)}"
    budget = f"{status.budget.spent} of {status.budget.asked} trials finished"
    table = Table(title=f"{status.study}: {status.state}, {budget}, best: {best}", box=box.SIMPLE_HEAD)
    for heading in ("worker", "device", "trial", "fold", "epoch", "last heartbeat"):
        table.add_column(heading)
    for worker in status.workers:
        table.add_row(
            worker.name,
            worker.device,
            str(worker.trial),
            _shown(worker.fold),
            _shown(worker.epoch),
            worker.last_heartbeat.strftime("%H:%M:%S UTC"),
        )
    return table


def status_line(status: Status) -> str:
    """Return a study's progress in one line."""
    best = "" if status.best is None else f", best {_number(status.best.value)} (trial {status.best.number})"
    return (
        f"{status.study}: {status.budget.spent} of {status.budget.asked} trials finished,"
        f" {len(status.workers)} at work{best}"
    )


def trials_frame(trials: Sequence[FrozenTrial]) -> pd.DataFrame:
    """Return one row a trial: number, state, value, times (UTC), fold scores, parameters."""
    rows = [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "value": trial.value,
            "started_at": _utc(trial.datetime_start),
            "finished_at": _utc(trial.datetime_complete),
            **{f"fold_{fold}": score for fold, score in sorted(trial.intermediate_values.items())},
            **trial.params,
        }
        for trial in trials
    ]
    return pd.DataFrame(rows, columns=None if rows else ["number", "state", "value", "started_at", "finished_at"])


def archive_tables(report: ArchiveReport) -> list[Table | str]:
    """Return what a look at an archive has found: what is used by class, and what is not by code."""
    classes = Table(box=box.SIMPLE_HEAD)
    for heading in ("class", "images", "patients"):
        classes.add_column(heading, justify="left" if heading == "class" else "right")
    for name, each in report.classes.items():
        classes.add_row(name, str(each.images), str(each.patients))
    not_used = sum(report.rejected.values())
    codes = Table(box=box.SIMPLE_HEAD)
    codes.add_column("code")
    codes.add_column("count", justify="right")
    for code, count in report.rejected.items():
        codes.add_row(code, str(count))
    lines = [f"label file: {report.format}"]
    for title, counts in (("views", report.views), ("sides", report.lateralities), ("split", report.splits)):
        if counts:
            lines.append(f"{title}: {', '.join(f'{name} {number}' for name, number in counts.items())}")
    lines.append(f"every path that is not used: {report.report}")
    if report.preview is not None:
        lines.append(f"before and after: {report.preview}")
    used = f"used: {report.images} images of {report.patients} patients"
    return [
        used, classes, f"not used: {not_used}, of them broken: {report.broken}", *([codes] if not_used else []),
        "\n".join(lines),
    ]  # fmt: skip


@contextmanager
def opening_progress(console: Console) -> Iterator[Callable[[Stage, int, int], None]]:
    """Give a function that shows how far an opening is, and the time left: a bar on a terminal, a line now and then elsewhere."""
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
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
def live_status(console: Console) -> Iterator[Callable[[Status], None]]:
    """Give a function that shows how far a study is: a live table on a terminal, a log line at every change elsewhere."""
    if console.is_terminal:
        with Live(console=console, transient=True, auto_refresh=False) as live:
            yield lambda status: live.update(status_table(status), refresh=True)
        return
    said = ""

    def say(status: Status) -> None:
        nonlocal said
        line = status_line(status)
        if line != said:
            said = line
            logger.info("%s", line, extra={"action": "progress", "study": status.study})

    yield say


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _utc(moment: datetime | None) -> str | None:
    """Return a trial's time, which we write as a naive one in UTC whatever the machine's zone, with its zone."""
    return None if moment is None else moment.replace(tzinfo=UTC).isoformat()
