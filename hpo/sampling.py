"""
What to try next.

A sampler is made anew for every trial, from the study's seed and the trial's number: many workers never propose the same, and
a restarted worker repeats nothing. Nothing is written while it thinks; the parameters are stored all at once afterwards.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from hpo.search_space import SearchSpace
from hpo.study_file import SamplerSection
from storage.claims import Claim, Claims

logger = logging.getLogger(__name__)

_PROPOSALS = 20


def sampler_seed(study_seed: int, trial_number: int, proposal: int) -> int:
    """Return a 32-bit seed for a sampler that thinks about one proposal for one trial."""
    digest = hashlib.sha256(f"sampler:{study_seed}:{trial_number}:{proposal}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def make_sampler(section: SamplerSection, *, seed: int, conditional: bool) -> BaseSampler:
    """Return the sampler that a study asks for."""
    if section.name == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ExperimentalWarning
        )  # `group` and `constant_liar` are; the study file asks for them
        return TPESampler(
            seed=seed,
            n_startup_trials=section.startup_trials,
            multivariate=True,
            group=conditional,
            constant_liar=True,
        )


def propose(study: optuna.Study, number: int, sampler: BaseSampler, space: SearchSpace) -> dict[str, Any]:
    """
    Return parameters for trial *number*, as *sampler* proposes them.

    Args:
        study: Made for this proposal alone: Optuna keeps a list of trials in it that would be stale the next time.
        number: Of a trial that is running and has no parameters yet.
        sampler: Likewise.
        space: Decides which dimensions exist.
    """
    trial = next(trial for trial in study.get_trials(deepcopy=False) if trial.number == number)
    fixed: Mapping[str, Any] = trial.system_attrs.get("fixed_params", {})
    sampler.before_trial(study, trial)
    relative = sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))

    def suggest(name: str, distribution: BaseDistribution) -> Any:
        if name in fixed:
            return fixed[name]
        if distribution.single():
            return _only_value(distribution)
        if name in relative and distribution._contains(distribution.to_internal_repr(relative[name])):  # noqa: SLF001 - as Trial does
            return relative[name]
        return sampler.sample_independent(study, trial, name, distribution)

    return space.suggest(suggest)


def _only_value(distribution: BaseDistribution) -> Any:
    return distribution.choices[0] if isinstance(distribution, CategoricalDistribution) else distribution.low  # type: ignore[attr-defined]


def settle_parameters(
    claims: Claims,
    claim: Claim,
    storage: optuna.storages.BaseStorage,
    *,
    study_name: str,
    study_seed: int,
    section: SamplerSection,
    space: SearchSpace,
) -> dict[str, Any]:
    """
    Return the parameters of the claimed trial: those it has, else new ones that no other trial of the study has.

    A space so small that twenty proposals in a row were taken gets a repetition.

    Raises:
        TakenOverError: The claim is somebody else's by now.
    """
    for proposal in itertools.count():
        trial = claims.patience.call(storage.get_trial, claim.trial_id)
        if trial.params:
            break
        seed = sampler_seed(study_seed, claim.number, proposal)
        sampler = make_sampler(section, seed=seed, conditional=space.conditional)
        study = claims.patience.call(optuna.load_study, study_name=study_name, storage=storage, sampler=sampler)
        params = claims.patience.call(propose, study, claim.number, sampler, space)
        repetition = proposal >= _PROPOSALS or _is_queued(trial)
        claims.settle_parameters(claim, params, space.distributions(params), repetition=repetition)
    logger.info("trial %d: %s", claim.number, trial.params, extra={"action": "parameters", "trial": claim.number})
    return dict(trial.params)


def _is_queued(trial: FrozenTrial) -> bool:
    """Whether somebody asked for exactly this configuration."""
    return "fixed_params" in trial.system_attrs
