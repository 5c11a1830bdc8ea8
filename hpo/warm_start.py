"""
What a new study takes from an older one: its trials with their scores where they are the same experiment, else its best guesses.

Two trials are the same experiment when data, folds and every field of the configuration that can change a number are the same,
wherever either study has it from: its base or its search. The objective is the same for all studies.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from hpo import exhibition
from hpo import study as studies
from hpo.notes import bare_note
from hpo.search_space import SearchSpace
from hpo.study import Study
from storage import exhibits, steering
from storage.errors import ConfigurationTakenError
from storage.record import Record, TrialRecord
from storage.tree import OutputTree
from trainer.config import CHANGES_NO_NUMBER, TrainConfig
from trainer.files import write_text

_GUESSES = 5
"""Configurations that are queued where scores cannot be taken over: more would spend the budget on another study's problem."""
_FIELDS = frozenset(TrainConfig.model_fields) - CHANGES_NO_NUMBER


class Origin(Record):
    """Where a trial was trained."""

    study: str
    number: int


class TakenOverRecord(TrialRecord):
    """The content of `optuna_trial.json` of a trial that was taken over: what the original's says, and where the original is."""

    taken_over_from: Origin
    """There are its files; `artifacts` are those of this folder: none. Attempts, seeds and `root_number` are the original's."""


@dataclass(frozen=True)
class Inheritance:
    """What a study has taken from another one."""

    source: str
    numbers: tuple[int, ...] = ()
    """Of the trials that were taken over, here."""
    there: int = 0
    """Trials whose configuration was here already."""
    outside: int = 0
    """Trials that are none of this study's: another configuration, or one that its space does not have."""
    unusable: int = 0
    """Trials that are unfinished, failed, or without the scores that their state promises."""
    other: tuple[str, ...] = ()
    """What of the experiment itself is another one."""
    queued: tuple[int, ...] = ()
    """Trials with its best configurations, where no scores could be taken over."""

    def in_words(self) -> str:
        """Return what was taken over, what was not, and why, in one line."""
        left = {
            "outside this study's space or with other settings": self.outside,
            "unfinished or failed": self.unusable,
            "here already": self.there,
        }
        not_taken = ", ".join(f"{count} {why}" for why, count in left.items() if count)
        if self.numbers:
            rest = f"; not taken: {not_taken}" if not_taken else ""
            return f"from {self.source}: {len(self.numbers)} trials with their scores, at no cost to the budget{rest}"
        why = f"other {', '.join(self.other)}" if self.other else (not_taken or "it has no trials")
        queued = f"its best {len(self.queued)} configurations are queued" if self.queued else "nothing is queued"
        return f"from {self.source}: no scores ({why}); {queued}"


def take_over(study: Study, source: Study, tree: OutputTree) -> Inheritance:
    """Add the trials of *source* that are trials of *study* too, with their scores and their records; return what was taken."""
    other = _other_experiment(study, source)
    taken = Inheritance(source.name, other=other) if other else _add_all(study, source)
    write_records(study, tree)
    write_notes(study)
    return taken


def queue_best(study: Study, source: Study, taken: Inheritance) -> Inheritance:
    """Queue the best configurations of *source* where nothing of it was *taken*; return what was taken in all."""
    if taken.numbers or taken.there:
        return taken
    searched = {*study.file.search, *source.file.search}
    other = taken.other or _other_settings(study.file.train, source.file.train, searched)
    return dataclasses.replace(taken, other=other, queued=_queue_guesses(study, source, searched))


def translate(
    params: Mapping[str, Any], old: SearchSpace, new: SearchSpace, fields: Collection[str] = _FIELDS
) -> dict[str, Any] | None:
    """
    Return the configuration that *params* are in the *old* space, as parameters of the *new* one.

    None if the new space has no configuration with the same values of *fields*. A dimension that only the old space has must
    have the new base's value; one that only the new space has takes the old base's.
    """
    try:
        config = old.configure(params)
        for asked in (config, config.model_copy(update={"weight_decay": config.weight_decay_resolved})):
            moved = dataclasses.replace(new, base=asked).defaults()
            if new.contains(moved) and not _differing(config, new.configure(moved), fields):
                return moved
    except ValidationError:  # what a script put into a study need not be a configuration
        pass
    return None


def _differing(one: TrainConfig, other: TrainConfig, fields: Collection[str]) -> list[str]:
    """Return those of *fields* that are not the same in both; a weight decay that is not given is the optimiser's own."""
    values = [{**dict(each), "weight_decay": each.weight_decay_resolved} for each in (one, other)]
    return [name for name in fields if values[0][name] != values[1][name]]


def _other_experiment(study: Study, source: Study) -> tuple[str, ...]:
    """Return what of data and folds differs."""
    ours, theirs = study.registration, source.registration
    if ours.data_hash != theirs.data_hash:
        return ("data",)
    return () if ours.folds_hash == theirs.folds_hash else ("folds",)


def _other_settings(ours: TrainConfig, theirs: TrainConfig, searched: Collection[str]) -> tuple[str, ...]:
    """Return the fields that neither study searches and that have other values."""
    return tuple(sorted(_differing(ours, theirs, _FIELDS - set(searched))))


def _add_all(study: Study, source: Study) -> Inheritance:
    """Add the trials of *source* that are trials of *study*."""
    numbers, there, outside, unusable = [], 0, 0, 0
    unshown = set(exhibits.unshown(source.storage.engine, source.registration.study_id))
    for trial in source.trials:
        if not _is_usable(trial, source.file.cv.folds):
            unusable += 1
            continue
        params = translate(trial.params, source.space, study.space)
        if params is None or not _same_vectors(study, source, params):
            outside += 1
            continue
        shown = trial._trial_id not in unshown  # noqa: SLF001 - Optuna has no public name for it
        number = _add(study, source, trial, params, shown=shown)
        if number is None:
            there += 1
        else:
            numbers.append(number)
    return Inheritance(source.name, tuple(numbers), there, outside, unusable)


def _is_usable(trial: FrozenTrial, n_folds: int) -> bool:
    """Return whether a trial has what its state promises: a complete one all folds and a value, since it can be the best."""
    scores = trial.intermediate_values
    if not (scores.keys() <= set(range(n_folds)) and all(math.isfinite(score) for score in scores.values())):
        return False
    if trial.state == TrialState.COMPLETE:
        return len(scores) == n_folds and trial.value is not None
    return trial.state == TrialState.PRUNED


def _same_vectors(study: Study, source: Study, params: Mapping[str, Any]) -> bool:
    """Return whether the other backbone's vectors that *params* ask for are the same in both studies."""
    folder = str(study.space.configure(params).embeddings_dir)
    return study.file.data.embeddings.get(folder) == source.file.data.embeddings.get(folder)


def _add(study: Study, source: Study, trial: FrozenTrial, params: Mapping[str, Any], *, shown: bool) -> int | None:
    # The reason comes along only from a trial that shows something: only then it is known to name nobody.
    attributes = {name: value for name, value in trial.user_attrs.items() if shown or name != "reason"}
    origin = trial.user_attrs.get("from", {"study": source.name, "number": trial.number})
    return steering.add_finished(
        study.storage.engine,
        study.registration.study_id,
        state=trial.state,
        value=trial.value if trial.state == TrialState.COMPLETE else None,
        params=params,
        distributions=study.space.distributions(params),
        scores=trial.intermediate_values,
        attributes={**attributes, "from": origin},
    )


def write_records(study: Study, tree: OutputTree) -> None:
    """
    Write `optuna_trial.json` of the trials that were taken over, after that of the original, where it is missing.

    Where the original's folder is gone, an idle worker writes what the database knows.
    """
    for trial in study.trials:
        folder = study.folder.trial(trial.number)
        if "from" not in trial.user_attrs or folder.record.exists():
            continue
        origin = Origin.model_validate(trial.user_attrs["from"])
        there = tree.study(origin.study).trial(origin.number).record
        if there.exists():
            folder.path.mkdir(parents=True, exist_ok=True)
            record = _record(study, trial, origin, TrialRecord.model_validate_json(there.read_bytes()))
            write_text(folder.record, record.model_dump_json(indent=2) + "\n")


def write_notes(study: Study) -> None:
    """Give the trials that were taken over a note that says from where, if they have none; their pictures stay there."""
    engine, trials = study.storage.engine, {trial._trial_id: trial for trial in study.trials}  # noqa: SLF001 - the only name
    for trial_id in exhibits.unshown(engine, study.registration.study_id):
        if "from" in trials[trial_id].user_attrs:
            exhibits.attach_late(engine, trial_id, {exhibits.NOTE: bare_note(trials[trial_id], _without_folders)})


def _without_folders(value: Any) -> Any:
    """Return a parameter as others may read it."""
    return exhibition.shown(value, str)


def _record(study: Study, trial: FrozenTrial, origin: Origin, original: TrialRecord) -> TakenOverRecord:
    own = {
        "study": study.name,
        "number": trial.number,
        "params": trial.params,
        "distributions": {name: distribution_to_json(each) for name, each in trial.distributions.items()},
        "artifacts": [],
        "taken_over_from": origin,
    }
    return TakenOverRecord.model_validate({**original.model_dump(), **own})


def _queue_guesses(study: Study, source: Study, searched: Collection[str]) -> tuple[int, ...]:
    """Queue the best configurations of *source* that the space of *study* has; return their trials' numbers."""
    numbers: list[int] = []
    for trial in studies.ranking(source):
        params = translate(trial.params, source.space, study.space, searched)
        if params is None or not _is_usable(trial, source.file.cv.folds) or len(numbers) == _GUESSES:
            continue
        try:
            numbers.append(steering.enqueue(study.storage.engine, study.registration.study_id, params, whole=True))
        except ConfigurationTakenError:  # the defaults may be among the best
            continue
    return tuple(numbers)
