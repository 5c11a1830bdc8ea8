"""Samplers that model what they have seen: Optuna's TPE and Gaussian process, on a copy of the study that keeps nothing."""

from __future__ import annotations

import copy
import math
import statistics
import warnings
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import optuna
import torch
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


class Snapshot:
    """
    A study's trials at one moment, as much of a storage as a sampler needs.

    What the sampler writes is dropped. TPE and GP leave what they propose among the attributes of the trial, for other workers
    to see until the parameters are there; here these follow at once.
    """

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        self._trials = list(trials)

    def get_study_id_from_name(self, study_name: str) -> int:  # noqa: ARG002 - Optuna's signature, as are the others
        """Return a number for a study."""
        return 0

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:  # noqa: ARG002
        """Return that the objective is wanted large."""
        return [StudyDirection.MAXIMIZE]

    def get_all_trials(
        self,
        study_id: int,  # noqa: ARG002
        deepcopy: bool = True,  # noqa: ARG002 - nobody changes them
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Return the trials, or those in some states."""
        return [trial for trial in self._trials if states is None or trial.state in states]

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Keep nothing."""


def tpe(trials: Sequence[FrozenTrial], trial: FrozenTrial, *, seed: int, startup: int, grouped: bool) -> dict[str, Any]:
    """
    Return what TPE proposes for *trial*: nothing before *startup* of *trials* finished, nor for dimensions that it never saw.

    Pruned trials count; they are worse than complete ones. Running ones are kept away from.

    Args:
        trials: Other trials, each with a whole configuration.
        trial: Whose parameters are wanted.
        seed: Of this proposal.
        startup: Trials.
        grouped: Model dimensions together that exist together, which a conditional space wants.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # `group` is; we test it
        sampler = TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=grouped, constant_liar=True)
    return _relative(sampler, trials, trial)


def gp(trials: Sequence[FrozenTrial], trial: FrozenTrial, *, seed: int, startup: int) -> dict[str, Any]:
    """
    Return what a Gaussian process proposes for *trial*; for dimensions that some trial has not, nothing.

    It sees complete trials alone, so pruned ones are shown to it as complete: it would propose the same hopeless place again.
    The arguments are those of `tpe`.
    """
    with _one_thread():
        return _relative(GPSampler(seed=seed, n_startup_trials=startup), with_pruned_judged(trials), trial)


def with_pruned_judged(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """
    Return *trials* with the pruned ones as complete.

    Each with the mean of its folds, but none better than the median of what is complete: it was given up for being worse.
    """
    values = [trial.value for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    if not values:
        return [trial for trial in trials if trial.state != TrialState.PRUNED]
    median = statistics.median(values)
    return [_judged(trial, median) if trial.state == TrialState.PRUNED else trial for trial in trials]


def _judged(trial: FrozenTrial, most: float) -> FrozenTrial:
    scores = [score for score in trial.intermediate_values.values() if math.isfinite(score)]
    judged = copy.copy(trial)
    judged.state = TrialState.COMPLETE
    judged.value = min(statistics.fmean(scores), most) if scores else most
    return judged


def _relative(sampler: BaseSampler, trials: Sequence[FrozenTrial], trial: FrozenTrial) -> dict[str, Any]:
    study = optuna.Study("snapshot", cast("BaseStorage", Snapshot(trials)), sampler=sampler)
    return sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread: the matrices are small, and many threads make a proposal several times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
