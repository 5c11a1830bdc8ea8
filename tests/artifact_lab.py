"""A study on a synthetic archive whose trials show something, and faults for what they are shown by."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pytest
import sqlalchemy as sa
from optuna.artifacts import ArtifactMeta, get_all_artifact_meta
from optuna.trial import FrozenTrial

from hpo.creation import create
from hpo.gallery import Gallery
from hpo.objective import Training, begin
from hpo.station import Station, set_up_station
from hpo.study import DataPlace, Study
from hpo.study_file import StudyFile
from hpo.worker import Worker
from storage.artifact_store import ArtifactStore, open_artifacts
from storage.claims import Claim
from storage.exhibits import FILES, NOTE
from storage.patience import Patience
from storage.study_storage import open_storage
from storage.tree import OutputTree
from trainer.artifacts import PREDICTIONS

NEVER = threading.Event()
TRAIN = {"arch": "test_efficientnet", "weights": "none", "img_size": 32, "epochs": 2, "batch_size": 8}
SEARCH = {"lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}}


class Killed(BaseException):
    """The process ends here: nothing catches it."""


@dataclass
class Faulty:
    """A store with a fault at one of its writes."""

    store: ArtifactStore
    at: int
    """Which one, from 0."""
    fault: BaseException

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write, or fail before it."""
        self.at -= 1
        if self.at < 0:
            raise self.fault
        self.store.write(artifact_id, content_body)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Return the content."""
        return self.store.open_reader(artifact_id)

    def remove(self, artifact_id: str) -> None:
        """Remove it."""
        self.store.remove(artifact_id)


@dataclass(frozen=True)
class Lab:
    """A study on a synthetic archive, whose silent workers are lost at once."""

    station: Station
    url: sa.URL
    artifacts: Path

    @property
    def study(self) -> Study:
        """The study."""
        return self.station.study

    @property
    def store(self) -> ArtifactStore:
        """The folder of artifacts."""
        return open_artifacts(str(self.artifacts))

    @property
    def identifiers(self) -> set[str]:
        """Everything that must not leave the archive."""
        records = self.station.dataset.records
        names = {name for each in records for name in (each.path, each.accession, each.patient)}
        assert min(map(len, names)) > 4
        return names

    def worker(self, store: ArtifactStore | None = None) -> Worker:
        """Return a new worker."""
        training = Training(self.station, Gallery.open(self.station, store or self.store))
        return Worker(self.station.claims, training, threading.Event())

    def claim(self) -> Claim:
        """Return a claim, which there must be."""
        claim = self.station.claims.claim()
        assert isinstance(claim, Claim)
        return claim

    def begun(self, worker: Worker) -> Claim:
        """Claim a trial and begin it, without training anything."""
        claim = self.claim()
        assert isinstance(worker.work, Training)
        worker.work._trial = begin(self.station, claim, NEVER)
        return claim

    def published(self, worker: Worker, predictions: str) -> Claim:
        """Claim a trial, and publish a first fold with these predictions, without training anything."""
        claim = self.begun(worker)
        assert isinstance(worker.work, Training)
        trial = worker.work._trial
        assert trial is not None
        (trial.folder.fold(0) / PREDICTIONS).write_text(predictions)
        self.station.claims.publish_fold(claim, 0, 0.5, ())
        trial.folder.publish(0)
        return claim

    def look(self, number: int) -> tuple[FrozenTrial, list[ArtifactMeta]]:
        """Return a trial and its artifacts as a process sees them that looks for the first time."""
        fresh = open_storage(self.url, application_name="test")
        trial = fresh.optuna.get_all_trials(self.study.registration.study_id)[number]
        artifacts = get_all_artifact_meta(trial, storage=fresh.optuna)
        fresh.engine.dispose()
        return trial, artifacts

    def trial(self, number: int) -> FrozenTrial:
        """Return a trial."""
        return self.look(number)[0]

    def shown(self, number: int, store: ArtifactStore | None = None) -> dict[str, bytes]:
        """Return what a trial shows, by file, as any script of Optuna's finds it."""
        found = self.look(number)[1]
        assert len({meta.filename for meta in found}) == len(found)
        assert all(meta.mimetype == FILES[meta.filename] for meta in found)
        content = {}
        for meta in found:
            with (store or self.store).open_reader(meta.artifact_id) as stream:
                content[meta.filename] = stream.read()
        return content

    def note(self, number: int) -> str | None:
        """Return a trial's note."""
        note: str | None = self.trial(number)._system_attrs.get(NOTE)
        return note


@contextmanager
def open_lab(archive: Path, url: sa.URL, *, pseudonyms: bool) -> Iterator[Lab]:
    """Give a new study of two folds in an empty database."""
    data = {"csv": archive / "classificacao.csv", "dicom_root": archive / "archive", "pseudonyms": pseudonyms}
    file = StudyFile.model_validate(
        {
            "study": f"study-{uuid.uuid4()}",
            "data": data,
            "cv": {"folds": 2},
            "train": TRAIN,
            "search": SEARCH,
            "budget": {"trials": 20},
            "pruning": {"name": "none"},
        }
    )
    tree = OutputTree(archive / "outputs")
    storage = open_storage(url, application_name="test")
    study = create(file, DataPlace.choose(file, tree, csv=None, dicom_root=None), tree, storage, None)
    station = set_up_station(
        study, tree, device="cpu", per_gpu=1, threads=1, patience=Patience(5), stop=NEVER, csv=None, dicom_root=None
    )
    lost_at_once = replace(station, claims=replace(station.claims, grace_s=0.0))
    yield Lab(lost_at_once, url, study.folder.path / "artifacts")
    storage.engine.dispose()


@contextmanager
def killed(engine: sa.Engine, moment: str, statement: str) -> Iterator[None]:
    """Kill the process before or after it has sent a *statement*."""

    def kill(_connection: object, _cursor: object, sent: str, *_: object) -> None:
        if statement in sent:
            raise Killed

    sa.event.listen(engine, f"{moment}_cursor_execute", kill)
    try:
        with pytest.raises(Killed):
            yield
    finally:
        sa.event.remove(engine, f"{moment}_cursor_execute", kill)
