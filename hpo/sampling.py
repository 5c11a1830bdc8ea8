"""
What to try next.

A proposal is a function of the study's seed, the trial's number and the trials that there are: many workers never propose the
same, and a restarted worker repeats nothing. Nothing is written while a sampler thinks; the parameters are stored all at once
afterwards.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from hpo import evolution, grid, sobol, surrogate
from hpo.assignment import check_queued
from hpo.dimensions import accepts
from hpo.history import queued, taken, understood, underway
from hpo.search_space import SearchSpace
from hpo.study_file import SamplerSection
from storage.claims import Claim, Claims, canonical

logger = logging.getLogger(__name__)

_PROPOSALS = 3
"""How often a sampler is asked before its trial gets something else that is new."""
_AT_RANDOM = 100
"""How often chance is asked after it where there is no end to the configurations."""
_INFORMATIVE = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Proposal:
    """Parameters for one trial."""

    params: dict[str, Any]
    repetition: bool
    """It is used although another trial may have it: somebody asked for just this, or nothing else is left."""


@dataclass(frozen=True)
class Situation:
    """What one trial's proposals depend on."""

    trial: FrozenTrial
    """It is running and has no parameters yet."""
    others: Sequence[FrozenTrial]
    """All other trials of the study, in order of their numbers."""
    study_seed: int
    section: SamplerSection
    space: SearchSpace


def sampler_seed(study_seed: int, trial_number: int, proposal: int) -> int:
    """Return a 32-bit seed for a sampler that thinks about one proposal for one trial."""
    digest = hashlib.sha256(f"sampler:{study_seed}:{trial_number}:{proposal}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def sample(space: SearchSpace, seed: int, n: int) -> list[dict[str, Any]]:
    """Return *n* configurations at random: those that `random` proposes for the first trials of a study with this seed."""
    return [_complete({}, space, sampler_seed(seed, number, 0)) for number in range(n)]


def propose(situation: Situation, refused: Collection[str] = ()) -> Proposal:
    """
    Return parameters that no other trial has, as the study's sampler proposes them; what was queued with the trial is kept.

    Where the sampler only finds what is taken, another configuration of a finite space is chosen at random, and in a space
    without end chance proposes.

    Args:
        situation: What it is about.
        refused: Configurations that turned out to be taken, as canonical texts, whether that can be seen yet or not.

    Raises:
        QueuedValueError: The space does not have what a script put into the queue.
    """
    asked_for = queued(situation.trial)
    check_queued(situation.space, asked_for)
    room = situation.space.narrowed(asked_for)
    if room.size() == 1:
        return Proposal(next(room.configurations()), repetition=True)
    tried = taken(situation.others, situation.space) | set(refused)
    candidates = _candidates(situation, room, tried)
    first = next(candidates)
    new = (params for params in itertools.chain([first], candidates) if canonical(params) not in tried)
    params = next(new, None)
    return Proposal(first, repetition=True) if params is None else Proposal(params, repetition=False)


def _candidates(situation: Situation, room: SearchSpace, tried: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield what the sampler proposes, some times, and then what is new in a finite *room*, or what chance brings."""
    history = understood(situation.others, situation.space)
    for proposal in range(_PROPOSALS):
        params = _complete(_suggested(situation, room, history, tried, proposal), room, _seed(situation, proposal))
        yield params
        # It was taken, else nobody would ask again. To a model it is now as if another worker tried it: look elsewhere.
        history.append(underway(situation.trial, params, situation.space))
    if room.size() is None:
        for proposal in range(_PROPOSALS, _PROPOSALS + _AT_RANDOM):
            yield _complete({}, room, _seed(situation, proposal))
    else:
        untried = [params for params in room.configurations() if canonical(params) not in tried]
        if untried:
            yield untried[np.random.default_rng(_seed(situation, _PROPOSALS)).integers(len(untried))]


def _suggested(
    situation: Situation, room: SearchSpace, history: Sequence[FrozenTrial], tried: Collection[str], proposal: int
) -> Mapping[str, Any]:
    """Return what the study's sampler has to say, which may be nothing, and need not be about every dimension."""
    section, space, trial = situation.section, situation.space, situation.trial
    seed, startup = _seed(situation, proposal), section.startup_trials
    match section.name:
        case "tpe":
            return surrogate.tpe(history, trial, seed=seed, startup=startup, grouped=space.conditional)
        case "gp":
            return surrogate.gp(history, trial, seed=seed, startup=startup)
        case "cmaes":
            moving, finished = evolution.axes(space), [each for each in history if each.state in _INFORMATIVE]
            return evolution.ask(moving, finished, seed) if moving and len(finished) >= startup else {}
        case "qmc":
            return sobol.point(space, situation.study_seed, trial.number)
        case "grid":
            return grid.next_configuration(space, room, tried, situation.study_seed) or {}
        case "random":
            return {}


def _seed(situation: Situation, proposal: int) -> int:
    return sampler_seed(situation.study_seed, situation.trial.number, proposal)


def _complete(suggested: Mapping[str, Any], room: SearchSpace, seed: int) -> dict[str, Any]:
    """Return a configuration of *room* with what is *suggested* as far as it is possible there, and the rest at random."""
    chance = np.random.default_rng(seed)

    def suggest(name: str, _: BaseDistribution) -> Any:
        dimension = room.dimensions[name]
        if name in suggested and accepts(dimension, suggested[name]):
            return dimension.take(suggested[name])
        return dimension.at(float(chance.random()))

    return room.suggest(suggest)


def settle_parameters(
    claims: Claims,
    claim: Claim,
    storage: BaseStorage,
    *,
    study_name: str,
    study_seed: int,
    section: SamplerSection,
    space: SearchSpace,
) -> dict[str, Any]:
    """
    Return the parameters of the claimed trial: those it has, else new ones that no other trial of the study has.

    A configuration that is taken is used again where somebody queued exactly this one, or where nothing else is left.

    Raises:
        TakenOverError: The claim is somebody else's by now.
        QueuedValueError: The space does not have what a script put into the queue.
    """
    refused: set[str] = set()
    while not (trial := claims.patience.call(storage.get_trial, claim.trial_id)).params:
        trials = claims.patience.call(storage.get_all_trials, claims.study_id, deepcopy=False)
        others = [each for each in trials if each.number != claim.number]
        proposal = propose(Situation(trial, others, study_seed, section, space), refused)
        distributions = space.distributions(proposal.params)
        if not claims.settle_parameters(claim, proposal.params, distributions):
            refused.add(canonical(proposal.params))
            if proposal.repetition:
                claims.settle_parameters(claim, proposal.params, distributions, repetition=True)
    logger.info(
        "trial %d: %s",
        claim.number,
        trial.params,
        extra={"action": "parameters", "study": study_name, "trial": claim.number},
    )
    return dict(trial.params)
