"""Studies and trials as people read them: tables and lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pandas as pd
from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table

from hpo.status import Status, is_over
from storage.ledger import Budget, WorkerState
from storage.summaries import Effort

if TYPE_CHECKING:
    from hpo.importance import Importance
    from trainer.archive_check import ArchiveReport  # draws: half a second of imports, for one command

_ORDER = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL)


def ranking_table(trials: Sequence[FrozenTrial], best_first: Sequence[FrozenTrial], title: str, width: int) -> Table:
    """
    Return the trials, first those that have a rank, the *best first*, with their fold scores and parameters.

    The parameters have a column each where so many characters *width* are enough for it, and share one elsewhere.
    """
    numbers = {trial.number for trial in best_first}
    others = sorted(
        (trial for trial in trials if trial.number not in numbers),
        key=lambda trial: (_ORDER.index(trial.state), trial.number),
    )
    shown = [*best_first, *others]
    columns = {name: [trial.params.get(name) for trial in shown] for name in _names(shown)}
    table = _ranking(shown, len(best_first), title, columns)
    if _width(table) <= width:
        return table
    return _ranking(shown, len(best_first), title, {"parameters": [_in_words(trial.params) for trial in shown]})


def _ranking(shown: Sequence[FrozenTrial], ranked: int, title: str, columns: Mapping[str, Sequence[object]]) -> Table:
    """Return a table of trials in their order, the first of which have a rank, with *columns* beside what every trial has."""
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for heading in ("rank", "trial", "value"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("folds", *columns):
        table.add_column(heading, overflow="fold")
    for index, trial in enumerate(shown):
        complete = trial.state == TrialState.COMPLETE
        table.add_row(
            str(index + 1) if index < ranked else "",
            str(trial.number),
            _number(trial.value) if complete else trial.state.name.lower(),
            " ".join(_number(score) for _, score in sorted(trial.intermediate_values.items())),
            *(_shown(cells[index]) for cells in columns.values()),
        )
    return table


def _width(table: Table) -> int:
    """Return how many characters the longest line of *table* has where nothing is wrapped."""
    unbounded = Console(width=10_000)
    return Measurement.get(unbounded, unbounded.options, table).maximum


def _in_words(params: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={_shown(value)}" for name, value in params.items())


def _names(trials: Sequence[FrozenTrial]) -> list[str]:
    return sorted({name for trial in trials for name in trial.params})


def status_view(status: Status, now: datetime) -> Group:
    """Return how far a study is, and who works on what."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    budget = status.budget
    counts = ", ".join(f"{count} {state}" for state, count in status.trials.items() if count)
    facts.add_row("trials", f"{_finished(budget)} finished{f' ({counts})' if counts else ''}")
    for unit, spent in _hours(budget).items():
        facts.add_row(unit, spent)
    if budget.deadline is not None:
        facts.add_row("deadline", _moment(budget.deadline))
    if budget.stop_reason is not None:
        facts.add_row("stopped", budget.stop_reason)
    if status.left_over:
        waiting = ", ".join(f"{count} for a worker on {kind}" for kind, count in status.left_over.items())
        facts.add_row("left over", f"trials under way that wait: {waiting}")
    if status.best is not None:
        best = status.best
        facts.add_row("best", f"{_number(best.value)} in trial {best.number}: {_in_words(best.params)}")
    heading = f"{status.study}: {status.state}{_time_left(status)}"
    return Group(heading, facts, *([_workers_table(status.workers, now)] if status.workers else []))


def _workers_table(workers: Sequence[WorkerState], now: datetime) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("worker", "device", "trial", "fold", "epoch", "images/s", "heartbeat"):
        left = heading in {"worker", "device"}
        table.add_column(heading, justify="left" if left else "right", overflow="fold", no_wrap=not left)
    for worker in workers:
        table.add_row(
            worker.name,
            worker.device,
            str(worker.trial),
            _shown(worker.fold),
            _shown(worker.epoch),
            "-" if worker.images_per_second is None else f"{worker.images_per_second:.1f}",
            f"{duration(max(0.0, (now - worker.last_heartbeat).total_seconds()))} ago",
        )
    return table


def status_line(status: Status) -> str:
    """Return a study's progress in one line."""
    best = "" if status.best is None else f", best {_number(status.best.value)} (trial {status.best.number})"
    return f"{status.study}: {status.state}, {budget_line(status.budget)}, {len(status.workers)} at work{best}"


def budget_line(budget: Budget) -> str:
    """Return what is spent of each limit, in one line."""
    parts = [f"{_finished(budget)} trials finished", *(f"{spent} {unit}" for unit, spent in _hours(budget).items())]
    if budget.deadline is not None:
        parts.append(f"until {_moment(budget.deadline)}")
    if budget.stop_reason is not None:
        parts.append(f"stopped: {budget.stop_reason}")
    return ", ".join(parts)


def _finished(budget: Budget) -> str:
    return str(budget.spent) if budget.asked is None else f"{budget.spent} of {budget.asked}"


def _hours(budget: Budget) -> dict[str, str]:
    """Return what is spent of each limit of hours, by its unit."""
    limits = {"hours": budget.hours, "GPU-hours": budget.gpu_hours}
    return {unit: f"{each.spent:.2f} of {each.asked:g}" for unit, each in limits.items() if each is not None}


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M %Z}"


def _time_left(status: Status) -> str:
    if status.seconds_left is None or is_over(status):
        return ""
    return f", about {duration(status.seconds_left)} left"


def duration(seconds: float) -> str:
    """Return about how long that is, in the largest unit of which it is two."""
    for unit, long in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * long:
            return f"{seconds / long:.0f} {unit}"
    return f"{seconds:.0f} s"


def trials_frame(trials: Sequence[FrozenTrial], efforts: Mapping[int, Effort]) -> pd.DataFrame:
    """Return one row a trial: number, state, value, times (UTC), attempts, GPU seconds, reason, fold scores, parameters."""
    always = ["number", "state", "value", "started_at", "finished_at", "attempts", "gpu_seconds", "reason"]
    folds = sorted({fold for trial in trials for fold in trial.intermediate_values})
    rows = [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "value": trial.value,
            "started_at": _utc(trial.datetime_start),
            "finished_at": _utc(trial.datetime_complete),
            "attempts": efforts[trial.number].attempts,
            "gpu_seconds": efforts[trial.number].gpu_s,
            "reason": trial.user_attrs.get("reason"),
            **{f"fold_{fold}": score for fold, score in trial.intermediate_values.items()},
            **trial.params,
        }
        for trial in trials
    ]
    # As objects: a whole number stays one in a column that other trials leave empty.
    return pd.DataFrame(rows, columns=[*always, *(f"fold_{fold}" for fold in folds), *_names(trials)], dtype=object)


def importance_table(found: Importance) -> Table:
    """Return the parameters, the most important first."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("parameter", overflow="fold")
    for heading in ("PED-ANOVA", "fANOVA", "trials"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in found.parameters:
        table.add_row(each.name, _percent(each.ped_anova), _percent(each.fanova), str(each.trials))
    return table


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


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _utc(moment: datetime | None) -> str | None:
    """Return a trial's time, which Optuna gives as a naive one of the machine's own zone, in UTC."""
    return None if moment is None else moment.astimezone(UTC).isoformat()
