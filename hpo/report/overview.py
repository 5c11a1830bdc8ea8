"""What was searched, and how far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime

from optuna.trial import TrialState

from hpo.report.blocks import Block, Facts, Notice, Section, Table
from hpo.report.findings import Findings
from hpo.report.wording import NOTHING, count, hours, moment, setting, shortened
from hpo.search_space import AnyDimension, CategoricalDimension
from hpo.status import is_over
from hpo.tables import budget_line
from storage.summaries import AttemptInBrief
from trainer.config import TrainConfig

_ALWAYS = (
    "arch",
    "weights",
    "freeze",
    "img_size",
    "epochs",
    "batch_size",
    "optimizer",
    "loss",
    "class_weights",
    "sampler",
)
"""Fields that a reader looks for, also where they are the defaults."""
_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "under way",
    TrialState.WAITING: "queued",
}


def overview(found: Findings) -> Section:
    """Return what was searched and how far it came."""
    file = found.study.file
    blocks: list[Block] = []
    if not is_over(found.status):
        blocks.append(
            Notice(f"The study is not over ({found.status.state}): these are its numbers at {moment(found.at)}.")
        )
    pruning = f"between folds {file.pruning.by_folds}, inside a fold {file.pruning.by_epochs}"
    learning = f", at random until {file.sampler.startup_trials} trials have finished"
    blocks += [
        Facts(
            [
                ("study", found.study.name),
                ("state", found.status.state),
                ("budget", f"{file.budget.in_words()} asked for; {budget_line(found.status.budget)}"),
                ("trials", _trials(found)),
                *_times(found),
                ("objective", _objective(found)),
                ("sampler", f"{file.sampler.name}{learning if file.sampler.name in {'tpe', 'gp', 'cmaes'} else ''}"),
                ("pruning", pruning if file.pruning.asked else "none"),
                ("seed", f"{file.seed}: folds, proposals and training follow from it"),
            ]
        ),
        _space(file.search),
        _shared(file.train, file.search),
    ]
    return Section("searched", "What was searched, and how far", blocks)


def _objective(found: Findings) -> str:
    return (
        f"the mean over {found.n_folds} folds, grouped by patient, of balanced accuracy adjusted for chance (0 is chance, 1 is"
        " perfect) at each fold's best epoch; larger is better"
    )


def _trials(found: Findings) -> str:
    """Return how many trials there are of each kind, and how many of them count for the ranking."""
    counts = Counter(trial.state for trial in found.trials)
    kinds = ", ".join(f"{counts[state]} {name}" for state, name in _STATES.items() if counts[state])
    origins = sum("from" in trial.user_attrs for trial in found.trials)
    taken = f"; {origins} of them taken over from another study" if origins else ""
    unranked = counts[TrialState.COMPLETE] - len(found.ranked)
    odd = f"; {unranked} complete without all folds, which therefore have no rank" if unranked else ""
    return f"{len(found.trials)} in all: {kinds}{taken}{odd}" if found.trials else "none yet"


def _times(found: Findings) -> list[tuple[str, str]]:
    """Return when it was, and what it took."""
    attempts = found.all_attempts
    created = [] if found.record is None else [("created", moment(found.record.created_at))]
    if not attempts:
        return created
    first = min(attempt.start for attempt in attempts)
    last = max(attempt.end or found.at for attempt in attempts)
    gpu_s = sum(attempt.gpus * _seconds(attempt, found.at) for attempt in attempts)
    together = sum(_seconds(attempt, found.at) for attempt in attempts)
    return [
        *created,
        (
            "at work",
            f"from {moment(first)} to {moment(last)}; {hours(busy_s(attempts, found.at))} with a worker at work",
        ),
        (
            "effort",
            f"{hours(together)} of all workers together, {gpu_s:.0f} GPU-seconds, {count(len(attempts), 'attempt')}",
        ),
    ]


def _seconds(attempt: AttemptInBrief, now: datetime) -> float:
    return ((attempt.end or now) - attempt.start).total_seconds()


def busy_s(attempts: list[AttemptInBrief], now: datetime) -> float:
    """Return the seconds in which at least one of *attempts* was under way."""
    total, until = 0.0, None
    for start, end in sorted((attempt.start, attempt.end or now) for attempt in attempts):
        begin = start if until is None else max(start, until)
        total += max(0.0, (end - begin).total_seconds())
        until = end if until is None else max(until, end)
    return total


def _space(search: Mapping[str, AnyDimension]) -> Table:
    rows = [(name, *_dimension(dimension), _condition(dimension)) for name, dimension in search.items()]
    return Table(
        "The search space.", ("parameter", "kind", "values", "scale", "exists"), rows, words=frozenset({0, 1, 2, 3, 4})
    )


def _dimension(dimension: AnyDimension) -> tuple[str, str, str]:
    """Return kind, values and scale."""
    if isinstance(dimension, CategoricalDimension):
        return "choice", ", ".join(setting(each) for each in dimension.choices), NOTHING
    scale = "logarithmic" if dimension.log else "linear"
    kind = "number" if dimension.type == "float" else "whole number"
    step = f"steps of {dimension.step:g}" if dimension.step not in {None, 1} else scale
    return kind, f"{dimension.low:g} to {dimension.high:g}", step


def _condition(dimension: AnyDimension) -> str:
    conditions = [
        f"{name} is {' or '.join(setting(value) for value in values)}" for name, values in dimension.wanted.items()
    ]
    return f"where {' and '.join(conditions)}" if conditions else "always"


def _shared(train: TrainConfig, search: Mapping[str, AnyDimension]) -> Table:
    """Return what all trials share, as far as a reader looks for it or it is no default."""
    defaults = TrainConfig()
    rows = [
        (name, shortened(setting(getattr(train, name))))
        for name in TrainConfig.model_fields
        if name not in search and (name in _ALWAYS or getattr(train, name) != getattr(defaults, name))
    ]
    return Table(
        "What all trials share; all else is at its default.", ("setting", "value"), rows, words=frozenset({0, 1})
    )
