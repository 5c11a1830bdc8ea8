"""
What finished trials show on the dashboard: kept in the artifact store, and attached to each trial in Optuna's own table.

A store that is away, or slow, and a file that cannot be read cost no trial: whoever is idle later makes up for what is missing.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tenacity
from optuna.trial import FrozenTrial

from hpo import exhibition, trial_record
from hpo.exhibition import Folders
from hpo.notes import UNREADABLE, bare_note, note
from hpo.station import Station
from storage import exhibits, ledger
from storage.artifact_store import ArtifactStore, remove_all
from storage.claims import Claim
from storage.errors import ArtifactStoreError, TakenOverError
from storage.exhibits import CONFUSION, CURVES
from storage.record import TrialRecord
from storage.tree import AttemptFolder
from trainer.data.naming import AsTheArchive, Disguise, Naming, read_or_make_key

logger = logging.getLogger(__name__)

_PICTURES = {CURVES: "learning curves", CONFUSION: "confusion matrix"}
_TRIES = 3
_TRY_AGAIN_S = 2.0
"""What took longer until it failed is not tried again: the store is there and does not answer."""
_TOGETHER_S = 30.0
"""How long all files of a trial may take; a store that is slower counts as away."""
_AT_A_TIME_S = 5.0
"""How long a worker makes up for others before it looks again for a trial."""
_PAUSE_S = 60.0
"""How long a store that was away is left alone: each trial would wait for it again. Twice as long each time after that."""
_LONGEST_PAUSE_S = 3600.0
_UNREAD_S = 600.0
"""How long files that could not be read are left alone: a network's file system may come back."""
_MANY_ATTEMPTS = 5
"""From this attempt on a trial is finished without being shown: its predecessors may have died over that."""
_BROKEN = (ValueError, KeyError)
"""What a damaged file is, also a record that lacks something of its configuration."""


@dataclass
class Gallery:
    """Makes, keeps and attaches what the trials of a study show."""

    station: Station
    store: ArtifactStore
    disguise: Disguise
    naming: Naming
    """What tables call images and patients."""
    _away_until: float = 0.0
    _pause_s: float = _PAUSE_S
    _unread_until: dict[int, float] = field(default_factory=dict)
    """Until when the files of a trial, by its id, are left alone."""

    @classmethod
    def open(cls, station: Station, store: ArtifactStore) -> Gallery:
        """Return the gallery of a station's study. Raises DataError: the key of the pseudonyms can be neither read nor made."""
        place, dataset = station.place, station.dataset
        pseudonyms = read_or_make_key(place.outputs)
        if place.selection.pseudonyms:  # what the data set calls them, they may be called
            return cls(station, store, Disguise.of(pseudonyms, place.dicom_root, (), ()), AsTheArchive())
        rejected = (rejection.path for rejection in dataset.rejections)
        disguise = Disguise.of(pseudonyms, place.dicom_root, dataset.records, rejected)
        return cls(station, store, disguise, pseudonyms)

    def hang(self, claim: Claim, record: TrialRecord, folder: AttemptFolder, beat: Callable[[], None]) -> None:
        """
        Attach what a trial has to show that is about to be finished, in place of what earlier attempts attached.

        *beat* is called between the files: a slow store is no hang. What cannot be shown now, an idle worker looks at again.

        Raises:
            TakenOverError: The trial is another attempt's by now.
        """
        folders = Folders.of(folder.trial, folder.path, len(record.fold_scores), folder.settled)
        attributes: dict[str, str] | None = None
        try:
            if claim.attempt < _MANY_ATTEMPTS:
                attributes = self._kept(claim.trial_id, claim.token, record, folders, beat)
        except (OSError, *_BROKEN) as error:
            self._say_unshown(record.number, error)
        try:
            self.station.claims.attach(claim, attributes or {})
        except TakenOverError:
            self._take_down(attributes or {})
            raise

    def make_up(self) -> bool:
        """
        Attach what finished trials have to show that show nothing yet, for a few seconds.

        Return whether there is more to do at once; what a store keeps from being done that is away is not.
        """
        claims, began = self.station.claims, time.monotonic()
        missing = set(claims.patience.call(exhibits.unshown, claims.engine, claims.study_id))
        missing -= {trial_id for trial_id, until in self._unread_until.items() if began < until}
        if not missing or began < self._away_until:
            return False
        found = {trial._trial_id: trial for trial in self.station.study.trials}  # noqa: SLF001 - Optuna has no public name
        # Others are idle too, and begin elsewhere.
        for trial_id in np.random.default_rng().permutation(sorted(missing & found.keys())).tolist():
            if time.monotonic() > began + _AT_A_TIME_S:
                return True
            if not self._make_up_for(found[trial_id], trial_id):
                return False
        return False

    def _make_up_for(self, trial: FrozenTrial, trial_id: int) -> bool:
        """Attach what one finished trial has to show; return False while the store is away."""
        claims = self.station.claims
        try:
            attributes = self._late(trial, trial_id)
        except OSError as error:
            self._say_unshown(trial.number, error)
            self._unread_until[trial_id] = time.monotonic() + _UNREAD_S
            return True
        except _BROKEN as error:
            said = {"action": "not_shown", "trial": trial.number}
            logger.warning("trial %d shows a note only: %s", trial.number, error, extra=said)
            attributes = {exhibits.NOTE: bare_note(trial, self._said, UNREADABLE)}
        if attributes is None:
            return False
        reason = trial.user_attrs.get("reason")
        if isinstance(reason, str) and (reworded := self.disguise.text(reason)) != reason:
            claims.patience.call(exhibits.reword, claims.engine, trial_id, reworded)
        attached = claims.patience.call(exhibits.attach_late, claims.engine, trial_id, attributes)
        if not attached and not claims.patience.call(exhibits.exists, claims.engine, trial_id):
            self._take_down(attributes)  # the study was deleted meanwhile, and what was in the store with it
        return True

    def _late(self, trial: FrozenTrial, trial_id: int) -> dict[str, str] | None:
        """Return the attributes of a finished trial; None while the store is away. Raises as `exhibition.contents` does."""
        study, read = self.station.study, self.station.claims.patience.call
        attempts = read(ledger.attempts, study.storage.engine, trial_id)
        folder = study.folder.trial(trial.number)
        if not attempts or not folder.record.is_file():
            return {exhibits.NOTE: bare_note(trial, self._said)}
        record = TrialRecord.model_validate_json(folder.record.read_bytes())
        if not trial_record.agrees(record, trial):
            record = trial_record.write_anew(self.station, trial)
        published = set(read(ledger.published_folds, study.storage.engine, trial_id))
        folders = Folders.of(folder, folder.path, study.file.cv.folds, published)
        return self._kept(trial_id, attempts[-1].token, record, folders, lambda: None)

    def _said(self, value: Any) -> Any:
        """Return a setting or a reason as others may read it."""
        return exhibition.shown(value, self.disguise.text)

    def _kept(
        self, trial_id: int, token: str, record: TrialRecord, folders: Folders, beat: Callable[[], None]
    ) -> dict[str, str] | None:
        """
        Put what a trial shows into the store, and return the attributes that say so; None while the store is away.

        Raises as `exhibition.contents` does.
        """
        if time.monotonic() < self._away_until:
            return None
        record = exhibition.public(record, self.disguise.text)
        contents = exhibition.contents(record, folders, self.station.dataset.class_names, self.naming)
        names = {filename: exhibits.artifact_id(token, filename) for filename in contents}
        # As optuna-dashboard serves them; below another path it is the dashboard's to say so.
        place = f"/artifacts/{self.station.claims.study_id}/{trial_id}"
        pictures = {what: f"{place}/{names[filename]}" for filename, what in _PICTURES.items() if filename in names}
        attributes = dict(exhibits.artifact_attribute(name, filename) for filename, name in names.items())
        attributes[exhibits.NOTE] = note(record, pictures)
        try:
            self._upload({names[filename]: content for filename, content in contents.items()}, beat)
        except ArtifactStoreError as error:
            self._say_unshown(record.number, error)
            self._away_until = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            return None
        self._pause_s = _PAUSE_S
        return attributes

    def _upload(self, contents: Mapping[str, bytes], beat: Callable[[], None]) -> None:
        """Write to the store, which may have a moment's trouble. Raises ArtifactStoreError."""
        began = time.monotonic()
        for name, content in contents.items():
            if time.monotonic() > began + _TOGETHER_S:
                raise ArtifactStoreError("in use", f"{_TOGETHER_S:g} s were not enough for the files of a trial")
            for attempt in tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(ArtifactStoreError),
                stop=tenacity.stop_after_attempt(_TRIES) | tenacity.stop_after_delay(_TRY_AGAIN_S),
                wait=tenacity.wait_exponential_jitter(multiplier=0.2, max=1.0),
                sleep=tenacity.sleep_using_event(self.station.claims.patience.stop),
                reraise=True,
            ):
                with attempt:
                    self.store.write(name, io.BytesIO(content))
                beat()

    def _take_down(self, attributes: Iterable[str]) -> None:
        """Remove from the store what nothing will ever be attached to, as far as the store is there."""
        with suppress(ArtifactStoreError):
            remove_all(self.store, exhibits.artifact_ids(attributes))

    def _say_unshown(self, number: int, error: Exception) -> None:
        said = {"action": "not_shown", "trial": number}
        logger.warning("trial %d shows nothing yet: %s", number, error, extra=said)
