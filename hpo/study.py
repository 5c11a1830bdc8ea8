"""A study that exists: load it, open its data, rank its trials."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from hpo.errors import NoDataPlaceError, NoFinishedTrialError, NotTheStudysDataError, NotTheStudysEmbeddingsError
from hpo.search_space import SearchSpace
from hpo.study_file import StudyFile
from storage import ledger
from storage.errors import UnknownStudyError
from storage.ledger import Registration
from storage.record import StudyRecord
from storage.study_storage import StudyStorage
from storage.tree import OutputTree, StudyFolder
from trainer.config import PreprocessingConfig, SelectionConfig
from trainer.data.archive import check_root
from trainer.data.cache import open_dataset
from trainer.data.folds import Folds, from_csv
from trainer.data.labels import read_labels
from trainer.data.naming import choose_naming
from trainer.data.progress import Progress, stoppable
from trainer.data.records import Dataset
from trainer.data.report import write_report
from trainer.embeddings import read_embeddings
from trainer.errors import OtherDataError
from trainer.files import write_text
from trainer.protocols import StopSignal
from trainer.provenance import commit, versions


@dataclass(frozen=True)
class Study:
    """A study that exists."""

    registration: Registration
    file: StudyFile
    space: SearchSpace
    folder: StudyFolder
    storage: StudyStorage

    @property
    def name(self) -> str:
        """Its name."""
        return self.registration.name

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, in order of their numbers."""
        return self.storage.optuna.get_all_trials(self.registration.study_id, deepcopy=False)


@dataclass(frozen=True)
class DataPlace:
    """Where the data of a study are on this machine."""

    csv: Path
    dicom_root: Path
    outputs: Path
    cache: Path
    selection: SelectionConfig
    stop: StopSignal | None = None
    """By which somebody may ask to stop while they are opened."""

    @classmethod
    def choose(
        cls,
        file: StudyFile,
        tree: OutputTree,
        *,
        csv: Path | None,
        dicom_root: Path | None,
        stop: StopSignal | None = None,
    ) -> DataPlace:
        """Return what the command says, else what the study says. Raises NoDataPlaceError."""
        chosen_csv, chosen_root = csv or file.data.csv, dicom_root or file.data.dicom_root
        if chosen_csv is None or chosen_root is None:
            missing = "--csv" if chosen_csv is None else "--dicom-root"
            raise NoDataPlaceError(f"study {file.study!r} does not say where its data are: give {missing}")
        return cls(chosen_csv, chosen_root, tree.root, tree.cache, file.data.selection(), stop)

    def until(self, stop: StopSignal | None) -> DataPlace:
        """Return the place with *stop* in place of its own signal, if there is one."""
        return self if stop is None else dataclasses.replace(self, stop=stop)

    def check(self) -> None:
        """Refuse what is no label file, or no folder: said in a moment, and without what decoding needs. Raises InputError."""
        read_labels(self.csv, self.selection)
        check_root(self.dicom_root)

    def open(
        self, preprocessing: PreprocessingConfig, progress: Progress | None = None, expected_hash: str | None = None
    ) -> Dataset:
        """
        Return the decoded data set, decoding it if nobody did yet.

        Raises:
            OtherDataError: They are not the expected ones; nothing is decoded.
            StopRequestedError: Somebody asked to stop; what is decoded is kept.
        """
        return open_dataset(
            self.csv,
            self.dicom_root,
            preprocessing,
            self.cache,
            selection=self.selection,
            naming=choose_naming(self.outputs, pseudonyms=self.selection.pseudonyms),
            expected_hash=expected_hash,
            progress=stoppable(progress, self.stop),
        )


def load(name: str, tree: OutputTree, storage: StudyStorage) -> Study:
    """Return a study. Raises UnknownStudyError."""
    registration = ledger.registration(storage.engine, name)
    if registration is None:
        raise UnknownStudyError(name, ledger.study_names(storage.engine))
    file = StudyFile.model_validate(registration.resolved)
    return Study(registration, file, file.space(), tree.study(name), storage)


def write_folder(study: Study, dataset: Dataset) -> None:
    """Write the study's own files where they are missing: they can all be made again from the database and the data."""
    study.folder.path.mkdir(parents=True, exist_ok=True)
    if not study.folder.folds.exists():
        write_text(study.folder.folds, study.registration.folds_csv)
    if not study.folder.data_report.exists():
        write_report(study.folder.data_report, dataset.rejections)
    if not study.folder.record.exists():
        record = StudyRecord(
            study=study.name,
            resolved=study.registration.resolved,
            data_hash=study.registration.data_hash,
            folds_hash=study.registration.folds_hash,
            images=len(dataset.records),
            patients=len(set(dataset.patients)),
            class_names=list(dataset.class_names),
            rejected=dataset.rejected(),
            versions=versions(),
            git_commit=commit().git_commit,
            created_at=datetime.now(UTC),
        )
        write_text(study.folder.record, record.model_dump_json(indent=2) + "\n")


def open_data(study: Study, place: DataPlace, progress: Progress | None = None) -> tuple[Dataset, Folds]:
    """
    Return the study's data set as decoded here, and its folds as stored.

    Raises:
        NotTheStudysDataError: The data here are others.
        NotTheStudysEmbeddingsError: The vectors of another backbone are others.
        InputError: Those vectors cannot be used.
    """
    try:
        dataset = place.open(study.file.train.preprocessing(), progress, study.registration.data_hash)
    except OtherDataError as error:
        raise NotTheStudysDataError(study.name, error.expected, error.found) from error
    dataset = with_embeddings(study.file, dataset, study.file.train.embeddings_dir)
    return dataset, from_csv(study.registration.folds_csv, dataset)


def with_embeddings(file: StudyFile, dataset: Dataset, folder: Path | None) -> Dataset:
    """
    Return *dataset* with the vectors in *folder*, and with no other's; with none without a folder.

    Raises:
        NotTheStudysEmbeddingsError: They are not those that the study was created on.
        InputError: They cannot be used.
    """
    if folder is None:
        return dataclasses.replace(dataset, features=None, features_hash=None)
    attached = read_embeddings(folder).attach(dataset)
    if file.data.embeddings.get(str(folder)) != attached.features_hash:
        raise NotTheStudysEmbeddingsError(file.study, folder)
    return attached


def ranking(study: Study) -> list[FrozenTrial]:
    """
    Return the trials that finished all their folds, the best first; of two equal ones the earlier.

    A script may have told a value without any fold; that is no trial of ours, whatever Optuna calls the best.
    """
    folds = set(range(study.file.cv.folds))
    complete = [
        trial
        for trial in study.trials
        if trial.state == TrialState.COMPLETE and trial.value is not None and folds <= trial.intermediate_values.keys()
    ]
    return sorted(complete, key=lambda trial: (-_value(trial), trial.number))


def best_trial(study: Study) -> FrozenTrial:
    """Return the best trial. Raises NoFinishedTrialError."""
    ranked = ranking(study)
    if not ranked:
        raise NoFinishedTrialError(study.name)
    return ranked[0]


def _value(trial: FrozenTrial) -> float:
    if trial.value is None:  # a complete trial has one: the database refuses it otherwise
        raise ValueError(f"trial {trial.number} is complete and has no value")
    return trial.value
