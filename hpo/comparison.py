"""A trial that was trained again, held against what the database remembers of it, with the reasons for what differs."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpo.replay import Original, Replay
from hpo.status import worker_name
from storage.ledger import PublishedFold
from storage.record import Attempt, describe_file
from trainer.artifacts import EMBEDDINGS, PREDICTIONS, Predictions, read_predictions
from trainer.provenance import commit, versions
from trainer.records import FoldResult

_TO_THE_BIT = (PREDICTIONS, "metrics/val_metrics.csv", EMBEDDINGS, "embeddings_val.csv")
"""Files of a fold that hold no times. The histories and `val_metrics.json` do, and so do the checkpoints, through them."""


@dataclass(frozen=True)
class FoldComparison:
    """A fold of the original and of its replay."""

    fold: int
    score: float
    """Difference; 0 where both are the same to the bit."""
    files: tuple[str, ...]
    """Those that are not the same to the bit."""
    probability: float | None
    """Largest difference; None where the original's predictions are gone, or of other images."""


@dataclass(frozen=True)
class Comparison:
    """What came of a replay, held against the original."""

    original: Original
    replay: Replay
    folds: tuple[FoldComparison, ...]

    @property
    def equal(self) -> bool:
        """Whether value, fold scores, predictions and metrics are the same to the bit."""
        same_value = self.original.value in {None, self.replay.value}
        return same_value and all(fold.score == 0 and not fold.files for fold in self.folds)

    def in_words(self) -> list[str]:
        """Return the lines that say it: one where all is equal, else what differs, and everything that may be the reason."""
        number, value = self.original.number, self.original.value
        if self.equal:
            shown = "" if value is None else f"value {value:.4f}, "
            return [
                f"trial {number}: equal to the bit: {shown}scores, predictions and metrics of {len(self.folds)} folds"
            ]
        known = reasons(self.original, self.replay) or [
            "nothing that we know of: neither device, threads, data nor code"
        ]
        return [f"trial {number}: {'; '.join(self._differences())}", *(f"what differs: {reason}" for reason in known)]

    def _differences(self) -> list[str]:
        recorded, here = self.original.value, self.replay.value
        said = [] if recorded in {None, here} else [f"value {recorded!r}, here {here!r}"]
        worst = max(self.folds, key=lambda fold: fold.score)
        said.append(
            f"largest difference of a fold score {worst.score:.3g} (fold {worst.fold})"
            if worst.score
            else "fold scores equal"
        )
        known = [fold.probability for fold in self.folds if fold.probability is not None]
        said.append(
            f"largest difference of a probability {max(known):.3g}" if known else "the original's predictions are gone"
        )
        said += [f"fold {fold.fold}: other {', '.join(fold.files)}" for fold in self.folds if fold.files]
        return said


def compare(original: Original, replayed: Replay) -> Comparison:
    """Return in what a replay differs from what the database recorded of the original."""
    published = [(original.folds[result.fold], result) for result in replayed.folds]
    return Comparison(original, replayed, tuple(_compare_fold(original, replayed, *each) for each in published))


def _compare_fold(original: Original, replayed: Replay, published: PublishedFold, result: FoldResult) -> FoldComparison:
    names = {f"fold_{result.fold}/{name}": name for name in _TO_THE_BIT}
    recorded = {names[file.name]: file.sha256 for file in published.files if file.name in names}
    here = replayed.folder / f"fold_{result.fold}"
    return FoldComparison(
        fold=result.fold,
        score=math.inf if result.score is None else abs(result.score - published.score),
        files=tuple(name for name, sha256 in recorded.items() if _sha256(here / name) != sha256),
        probability=_largest_difference(
            original.study.folder.trial(original.number).fold(result.fold) / PREDICTIONS,
            recorded.get(PREDICTIONS),
            read_predictions(here / PREDICTIONS, replayed.class_names),
            replayed.class_names,
        ),
    )


def _sha256(path: Path) -> str | None:
    """Return the hash of a file, or None where there is none."""
    return describe_file(path, path.name).sha256 if path.is_file() else None


def _largest_difference(
    path: Path, sha256: str | None, here: Predictions, class_names: tuple[str, ...]
) -> float | None:
    """Return the largest difference of a probability; None if *path* is not what was published, or of other images."""
    if sha256 is None or _sha256(path) != sha256:
        return None
    there = read_predictions(path, class_names)
    if there.images != here.images:
        return None
    return float(np.abs(there.probabilities - here.probabilities).max())


def reasons(original: Original, replayed: Replay) -> list[str]:
    """Return everything that we know to differ between the original and its replay, and that may have changed the bits."""
    found = [
        f"{name.replace('_', ' ')}: {then} then, {getattr(replayed.resolution, name)} now"
        for name, then in original.resolution
        if getattr(replayed.resolution, name) != then
    ]
    expected = original.study.registration.data_hash
    if replayed.data_hash != expected:
        found.append(f"data: hash {expected[:12]} then, {replayed.data_hash[:12]} now")
    publishers = {fold.token for fold in original.folds.values()}
    for attempt in original.attempts:
        if attempt.token in publishers:
            found += _of_attempt(attempt)
    if not original.config.deterministic:
        found.append("nothing need differ: the study does not ask for deterministic algorithms")
    return list(dict.fromkeys(found))  # attempts mostly have the same to say


def _of_attempt(attempt: Attempt) -> list[str]:
    """Return in what the program and the machine of an attempt differ from ours."""
    then, now = attempt.environment.get("versions", {}), versions()
    found = [
        f"{name}: {then.get(name, 'none')} then, {now.get(name, 'none')} now"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    code, commit_then = commit(), attempt.environment.get("git_commit")
    if commit_then != code.git_commit:
        found.append(f"git commit: {commit_then} then, {code.git_commit} now")
    dirty = {"then": attempt.environment.get("git_dirty"), "now": code.git_dirty}
    if any(dirty.values()):
        found.append(
            f"perhaps the code: changed from its commit {' and '.join(when for when, is_so in dirty.items() if is_so)}"
        )
    hosts = [name.rpartition(":")[0] for name in (attempt.worker, worker_name(os.getpid()))]
    if hosts[0] != hosts[1]:
        found.append(f"machine: {hosts[0]} then, {hosts[1]} now")
    return found
