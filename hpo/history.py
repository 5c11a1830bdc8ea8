"""What there is to learn from: the trials of a study at one moment."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.search_space import SearchSpace
from storage.claims import canonical

_QUEUED = "fixed_params"
"""Optuna's name for what `enqueue_trial` was given."""
_NOBODYS = -1
"""A number that no trial has."""


def queued(trial: FrozenTrial) -> dict[str, Any]:
    """Return the values that somebody asked for when the trial was put into the queue, unchecked."""
    return dict(trial.system_attrs.get(_QUEUED, {}))


def understood(trials: Iterable[FrozenTrial], space: SearchSpace) -> list[FrozenTrial]:
    """
    Return those of *trials* whose parameters are a configuration of *space*, as the space itself writes them.

    An Optuna script may have added trials with other ranges, or with values that are beside a grid by a rounding error.
    Samplers would drop a whole dimension for one of them.
    """
    distributions = space.distributions(space.dimensions)
    kept = []
    for trial in trials:
        if not space.contains(trial.params):
            continue
        as_written = copy.copy(trial)
        as_written.params = {name: space.dimensions[name].take(value) for name, value in trial.params.items()}
        as_written.distributions = {name: distributions[name] for name in trial.params}
        kept.append(as_written)
    return kept


def underway(trial: FrozenTrial, params: Mapping[str, Any], space: SearchSpace) -> FrozenTrial:
    """Return what looks like another worker's trial with *params*, beside *trial*, which is running and has none."""
    running = copy.copy(trial)
    running.number = _NOBODYS  # TPE takes no notice of its own trial
    running.params = dict(params)
    running.distributions = space.distributions(params)
    return running


def taken(trials: Iterable[FrozenTrial], space: SearchSpace) -> set[str]:
    """
    Return all configurations that *trials* have, or will have since they were asked for, as canonical texts.

    A failed one may be tried again where the failure was not its own; where it was, the database refuses it.
    """
    tried = (trial for trial in trials if trial.state != TrialState.FAIL)
    return {canonical(_as_written(trial.params or queued(trial), space)) for trial in tried}


def _as_written(params: Mapping[str, Any], space: SearchSpace) -> Mapping[str, Any]:
    """Return *params* as *space* writes them; what is no configuration of it as it is."""
    if not space.contains(params):
        return params
    return {name: space.dimensions[name].take(value) for name, value in params.items()}
