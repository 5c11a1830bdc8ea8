"""
Every path of the output tree, and how an attempt's files become the trial's.

An attempt writes only below its own `trial_N/.attempt-<token>/`. What it leaves becomes part of the trial by one rename each,
after the database has settled that it is. A successor copies the checkpoints it continues from.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storage.errors import FolderVanishedError, StudyFolderError, StudyNameError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_RESERVED = {"artifacts", "cache", "train"}
_LAST = "last_model.pth"
_CONTINUED_FROM = ("best_model.pth", _LAST)
"""In this order: who still writes there may replace both in between, and a last one that is newer says what the best one is."""
_ATTEMPT = ".attempt-"
_LOG = "run.log"


def check_study_name(name: str) -> str:
    """Return *name* if it can be a folder's name and nothing else. Raises StudyNameError."""
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise StudyNameError(name)
    return name


@dataclass(frozen=True)
class OutputTree:
    """The output folder."""

    root: Path

    @property
    def cache(self) -> Path:
        """Decoded data sets."""
        return self.root / "cache"

    @property
    def train(self) -> Path:
        """Runs by hand."""
        return self.root / "train"

    def study(self, name: str) -> StudyFolder:
        """Return the folder of a study; nothing is made. Raises StudyNameError."""
        return StudyFolder(self.root / check_study_name(name))


@dataclass(frozen=True)
class StudyFolder:
    """The folder of a study."""

    path: Path

    @property
    def record(self) -> Path:
        """The resolved study, hashes and versions."""
        return self.path / "study.json"

    @property
    def folds(self) -> Path:
        """Image, patient, label, fold."""
        return self.path / "folds.csv"

    @property
    def data_report(self) -> Path:
        """Every image that was not used, with its code."""
        return self.path / "data_report.csv"

    def check_new(self) -> None:
        """
        Accept the folder for a new study: a fold that lies there would be taken for a published one of its trials.

        Raises:
            StudyFolderError: Something is in it.
        """
        if self.path.is_dir() and any(self.path.iterdir()):
            raise StudyFolderError(self.path)

    def trial(self, number: int) -> TrialFolder:
        """Return the folder of a trial; nothing is made."""
        return TrialFolder(self.path / f"trial_{number:04d}")


@dataclass(frozen=True)
class TrialFolder:
    """The folder of a trial: what is in it outside `.attempt-*` is settled."""

    path: Path

    @property
    def record(self) -> Path:
        """Everything about the trial, readable without a database."""
        return self.path / "optuna_trial.json"

    @property
    def summary(self) -> Path:
        """The reproducibility record of the run."""
        return self.path / "summary.json"

    def fold(self, fold: int) -> Path:
        """The place of a published fold."""
        return self.path / f"fold_{fold}"

    def attempt_path(self, token: str) -> Path:
        """The folder below which the attempt with that token writes."""
        return self.path / f"{_ATTEMPT}{token}"

    def settle_folds(self, publishers: Mapping[int, str]) -> None:
        """
        Put every published fold in its place, where its publisher died between the record and the rename.

        Args:
            publishers: The token of the attempt that published each fold.

        Raises:
            FolderVanishedError: A published fold is neither at its place nor where it was trained.
        """
        for fold, token in publishers.items():
            place = self.fold(fold)
            if place.is_dir():
                continue
            trained = self.attempt_path(token) / place.name
            try:
                trained.rename(place)
            except OSError as error:
                if not place.is_dir():  # else its publisher, or another worker, did so at the same moment
                    raise FolderVanishedError(place) from error

    def promote(self, token: str) -> None:
        """
        Make the files of the attempt that finished the trial the trial's own, and remove all attempts' folders.

        May be called again after a kill in the middle: every step is one rename, and the folders go last.
        """
        for file in sorted(self.attempt_path(token).glob("[!.]*")):
            if file.is_file():
                with suppress(FileNotFoundError):  # another worker tidies up at the same moment
                    file.replace(self.path / file.name)
        for leftover in self.path.glob(f"{_ATTEMPT}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def unpromoted(self) -> bool:
        """Whether attempts' folders are left."""
        return any(self.path.glob(f"{_ATTEMPT}*"))

    def begin_attempt(self, token: str, earlier: Sequence[str], publishers: Mapping[int, str]) -> AttemptFolder:
        """
        Make the folder of a new attempt and settle what earlier ones published.

        Args:
            token: Of the new attempt.
            earlier: Tokens of the attempts before, the first one first.
            publishers: The token of the attempt that published each fold.

        Raises:
            FolderVanishedError: See `settle_folds`.
        """
        self.settle_folds(publishers)
        path = self.attempt_path(token)
        path.mkdir(parents=True, exist_ok=True)
        for token_before in reversed(earlier):
            log = self.attempt_path(token_before) / _LOG
            if log.is_file():
                shutil.copyfile(log, path / _LOG)
                break
        return AttemptFolder(self, path, tuple(earlier), set(publishers))


@dataclass(frozen=True)
class AttemptFolder:
    """The folder below which one attempt writes. It fits the trainer's `RunFolder`."""

    trial: TrialFolder
    path: Path
    earlier: tuple[str, ...]
    settled: set[int]
    """Folds that the database calls published, those of this attempt among them."""

    @property
    def log(self) -> Path:
        """What is said while the trial is trained; it begins with what its earlier attempts said."""
        return self.path / _LOG

    def fold(self, fold: int) -> Path:
        """Return the folder to train *fold* in, with the checkpoints of the latest attempt at it to continue from."""
        folder = self.path / f"fold_{fold}"
        if folder.is_dir():
            return folder
        making = self.path / f".making-fold_{fold}"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        for token in reversed(self.earlier):
            before = self.trial.attempt_path(token) / folder.name
            if (before / _LAST).is_file():
                for name in (*_CONTINUED_FROM, *(path.name for path in before.glob("checkpoint_epoch_*.pth"))):
                    if (before / name).is_file():
                        shutil.copyfile(before / name, making / name)
                break
        making.rename(folder)  # a kill while copying leaves no half checkpoint
        return folder

    def published(self, fold: int) -> Path | None:
        """Return the place of *fold* if it is published; what only happens to lie there is not."""
        return self.trial.fold(fold) if fold in self.settled else None

    def publish(self, fold: int) -> None:
        """Rename a fold to its place; the database must have settled it before."""
        self.fold(fold).rename(self.trial.fold(fold))
        self.settled.add(fold)
