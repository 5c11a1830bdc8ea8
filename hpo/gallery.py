"""
What a finished trial shows on the dashboard: its record, curves, confusion matrix and predictions, and a note.

They are made from the trial's folder, kept in the artifact store, and attached to the trial in Optuna's own table. For other
eyes: pseudonyms stand in the place of images, accession numbers and patients. A store that is away costs no trial: whoever is
idle later makes up for what is missing.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import tenacity
from optuna.trial import FrozenTrial

from hpo.notes import bare_note, note
from hpo.station import Station
from storage import exhibits, ledger
from storage.artifact_store import ArtifactStore
from storage.claims import Claim
from storage.errors import ArtifactStoreError
from storage.exhibits import CONFUSION, CURVES, RECORD, TABLE
from storage.record import TrialRecord
from storage.tree import AttemptFolder, TrialFolder
from trainer import pictures
from trainer.artifacts import (
    HISTORY,
    PREDICTIONS,
    Predictions,
    pool,
    print_predictions,
    read_history,
    read_predictions,
)
from trainer.data.naming import AsTheArchive, Disguise, Naming, read_or_make_key
from trainer.metrics import evaluate

logger = logging.getLogger(__name__)

_PICTURES = {CURVES: "learning curves", CONFUSION: "confusion matrix"}
_TRIES = 3
_AT_A_TIME_S = 5.0
"""How long a worker makes up for others before it looks again for a trial."""
_PAUSE_S = 60.0
"""How long a store that was away is left alone: each trial would wait for it again."""


@dataclass(frozen=True)
class Folders:
    """Where the files of a trial lie."""

    own: Path
    """Those of the whole trial."""
    finished: Mapping[int, Path]
    """Those of each finished fold."""
    begun: Mapping[int, Path]
    """Those of folds that were begun and not finished."""

    @classmethod
    def of(cls, trial: TrialFolder, own: Path, n_folds: int, finished: set[int]) -> Folders:
        """Return the folders of a trial, with those that are really there; *own* is its attempt's before it is settled."""
        places = {fold: trial.fold(fold) for fold in sorted(finished)}
        return cls(
            own,
            {fold: place for fold, place in places.items() if (place / PREDICTIONS).is_file()},
            {fold: own / f"fold_{fold}" for fold in range(n_folds) if fold not in finished},
        )


@dataclass
class Gallery:
    """Makes, keeps and attaches what the trials of a study show."""

    station: Station
    store: ArtifactStore
    disguise: Disguise
    naming: Naming
    """What tables call images and patients."""
    _away_until: float = 0.0

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

    def hang(self, claim: Claim, record: TrialRecord, folder: AttemptFolder) -> None:
        """
        Attach what a trial has to show that is about to be finished, in place of what earlier attempts attached.

        Raises:
            TakenOverError: The trial is another attempt's by now.
        """
        folders = Folders.of(folder.trial, folder.path, len(record.fold_scores), folder.settled)
        attributes = self._kept(claim.trial_id, claim.token, self._public(record), folders)
        self.station.claims.attach(claim, attributes or {})

    def make_up(self) -> bool:
        """
        Attach what finished trials have to show that show nothing yet, for a few seconds.

        Return whether there is more to do at once; what a store keeps from being done that is away is not.
        """
        claims, began = self.station.claims, time.monotonic()
        missing = set(claims.patience.call(exhibits.unshown, claims.engine, claims.study_id))
        if not missing or began < self._away_until:
            return False
        for trial in self.station.study.trials:
            trial_id = trial._trial_id  # noqa: SLF001 - Optuna has no public name for it
            if trial_id not in missing:
                continue
            if time.monotonic() > began + _AT_A_TIME_S:
                return True
            try:
                attributes = self._late(trial, trial_id)
            except (OSError, ValueError, KeyError) as error:  # a file of the folder is broken: no reason to leave
                said = {"action": "not_shown", "trial": trial.number}
                logger.warning("trial %d shows a note only: %s", trial.number, error, extra=said)
                attributes = {exhibits.NOTE: bare_note(trial, self.disguise.text)}
            if attributes is None:
                return False
            claims.patience.call(exhibits.attach_late, claims.engine, trial_id, attributes)
        return False

    def _late(self, trial: FrozenTrial, trial_id: int) -> dict[str, str] | None:
        """Return the attributes of a finished trial; None while the store is away."""
        study, read = self.station.study, self.station.claims.patience.call
        attempts = read(ledger.attempts, study.storage.engine, trial_id)
        folder = study.folder.trial(trial.number)
        if not attempts or not folder.record.is_file():
            return {exhibits.NOTE: bare_note(trial, self.disguise.text)}
        record = TrialRecord.model_validate_json(folder.record.read_bytes())
        published = set(read(ledger.published_folds, study.storage.engine, trial_id))
        folders = Folders.of(folder, folder.path, study.file.cv.folds, published)
        return self._kept(trial_id, attempts[-1].token, self._public(record), folders)

    def _public(self, record: TrialRecord) -> TrialRecord:
        """Return the record as others may read it."""
        return record.model_copy(
            update={"reason": None if record.reason is None else self.disguise.text(record.reason)}
        )

    def _kept(self, trial_id: int, token: str, record: TrialRecord, folders: Folders) -> dict[str, str] | None:
        """Put what a trial shows into the store, and return the attributes that say so; None while the store is away."""
        if time.monotonic() < self._away_until:
            return None
        contents = self._contents(record, folders)
        names = {filename: exhibits.artifact_id(token, filename) for filename in contents}
        try:
            for filename, content in contents.items():
                self._upload(names[filename], content)
        except ArtifactStoreError as error:
            said = {"action": "artifacts_away", "trial": record.number}
            logger.warning("trial %d shows nothing yet: %s", record.number, error, extra=said)
            self._away_until = time.monotonic() + _PAUSE_S
            return None
        # As optuna-dashboard serves them; below another path it is the dashboard's to say so.
        place = f"/artifacts/{self.station.claims.study_id}/{trial_id}"
        shown = {what: f"{place}/{names[filename]}" for filename, what in _PICTURES.items() if filename in names}
        attached = dict(exhibits.artifact_attribute(name, filename) for filename, name in names.items())
        return {**attached, exhibits.NOTE: note(record, shown)}

    def _upload(self, name: str, content: bytes) -> None:
        """Write to the store, which may have a moment's trouble. Raises ArtifactStoreError."""
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(ArtifactStoreError),
            stop=tenacity.stop_after_attempt(_TRIES),
            wait=tenacity.wait_exponential_jitter(multiplier=0.2, max=1.0),
            sleep=tenacity.sleep_using_event(self.station.claims.patience.stop),
            reraise=True,
        ):
            with attempt:
                self.store.write(name, io.BytesIO(content))

    def _contents(self, record: TrialRecord, folders: Folders) -> dict[str, bytes]:
        """Return what there is to show, by file."""
        contents = {}
        curves = _curves(folders)
        if curves is not None:
            contents[CURVES] = curves
        if folders.finished:
            names = self.station.dataset.class_names
            pooled, origin = pool(
                {
                    fold: self._named(read_predictions(path / PREDICTIONS, names))
                    for fold, path in folders.finished.items()
                }
            )
            contents[CONFUSION] = _confusion(pooled, names, record, len(folders.finished))
            table = io.StringIO()
            print_predictions(table, pooled, names, origin)
            contents[TABLE] = table.getvalue().encode()
        contents[RECORD] = f"{record.model_dump_json(indent=2)}\n".encode()
        return contents

    def _named(self, predictions: Predictions) -> Predictions:
        """Return *predictions* with pseudonyms; they come before the sorting, or the order would tell who is who."""
        return replace(
            predictions,
            images=tuple(map(self.naming.path, predictions.images)),
            patients=tuple(map(self.naming.patient, predictions.patients)),
        )


def _curves(folders: Folders) -> bytes | None:
    """Return the learning curves of every fold that was begun, as a picture; None where there is none."""
    drawn = folders.own / CURVES
    if drawn.is_file():
        return drawn.read_bytes()
    places = {**folders.finished, **folders.begun}
    histories = {fold: read_history(places[fold]) for fold in sorted(places) if (places[fold] / HISTORY).is_file()}
    if not histories:
        return None
    picture = io.BytesIO()
    pictures.draw_curves(histories, picture)
    return picture.getvalue()


def _confusion(pooled: Predictions, class_names: tuple[str, ...], record: TrialRecord, n_folds: int) -> bytes:
    """Return the confusion matrix over all images that were predicted, as a picture."""
    asked = len(record.fold_scores)
    folds = f"all {asked} folds" if n_folds == asked else f"{n_folds} of {asked} folds, {record.state}"
    picture = io.BytesIO()
    metrics = evaluate(pooled.labels, pooled.probabilities, class_names)
    pictures.draw_metrics(metrics, picture, f"trial {record.number}, {folds} pooled")
    return picture.getvalue()
