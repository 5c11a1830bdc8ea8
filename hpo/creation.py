"""Create a study: everything that can be found wrong before the first trial is found here."""

from __future__ import annotations

import logging
from collections import defaultdict
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.study import StudyDirection

from hpo.errors import StudyFileError
from hpo.study import DataPlace, Study, load, write_folder
from hpo.study_file import StudyFile
from hpo.warm_start import queue_best, take_over
from storage import ledger, steering
from storage.errors import ConfigurationTakenError, StudyExistsError
from storage.study_storage import StudyStorage
from storage.tree import OutputTree
from trainer.balance import resolve_balance, training_counts
from trainer.config import TrainConfig
from trainer.data.division import make_folds
from trainer.data.folds import Folds, to_csv
from trainer.data.progress import Progress
from trainer.data.records import Dataset
from trainer.data.report import summary
from trainer.embeddings import Embeddings, read_embeddings
from trainer.errors import InputError
from trainer.model import build_network

logger = logging.getLogger(__name__)

_N_CLASSES = 2  # of networks that are only built: their heads are new anyway


def create(
    file: StudyFile,
    place: DataPlace,
    tree: OutputTree,
    storage: StudyStorage,
    progress: Progress | None,
    older: Study | None = None,
) -> Study:
    """
    Create a study: decode its data, fix its folds, write it down in the database and in its folder.

    It begins with what it can take over from an *older* one, and with its own defaults.

    Raises:
        StudyExistsError: A study has that name.
        StudyFolderError: Its folder holds another study's files.
        StudyFileError: A configuration of the space cannot be trained.
    """
    folder = tree.study(file.study)
    if file.budget.deadline is not None and file.budget.deadline <= datetime.now(UTC):
        raise StudyFileError(f"budget.deadline: {file.budget.deadline} is over: expected a moment in the future")
    check_networks(file)
    if ledger.registration(storage.engine, file.study) is not None:
        raise StudyExistsError(file.study)
    folder.check_new()
    embeddings = [read_embeddings(path) for path in file.embeddings_dirs()]
    dataset = place.open(file.train.preprocessing(), progress)
    folds = make_folds(dataset, file.cv.folds, file.seed)
    check_balance(file, dataset, folds)
    file = settle_embeddings(file, embeddings, dataset)
    # Only now: data that cannot be used are said in one line, the error's.
    logger.info("%s", summary(dataset), extra={"action": "data_opened", "study": file.study})
    # A kill between these two leaves Optuna's row alone; the next `create` takes it over.
    optuna_study = optuna.create_study(
        study_name=file.study, storage=storage.optuna, direction="maximize", load_if_exists=True
    )
    if optuna_study.direction != StudyDirection.MAXIMIZE or optuna_study.get_trials(deepcopy=False):
        raise StudyExistsError(file.study)  # of somebody else's making
    with storage.engine.begin() as connection:
        registered = ledger.register(
            connection,
            study_id=optuna_study._study_id,  # noqa: SLF001 - Optuna has no public name for it
            resolved=file.model_dump(mode="json"),
            data_hash=dataset.data_hash,
            folds_hash=folds.hash,
            folds_csv=to_csv(folds, dataset),
            limits=file.budget.limits(file.space().size()),
        )
    if not registered:
        raise StudyExistsError(file.study)
    study = load(file.study, tree, storage)
    begin_queue(study, older, tree)
    write_folder(study, dataset)
    logger.info(
        "study %s created in %s", file.study, folder.path, extra={"action": "study_created", "study": file.study}
    )
    return study


def begin_queue(study: Study, older: Study | None, tree: OutputTree) -> None:
    """Give a new study what it knows and tries first: an older one's trials, its own defaults, the older one's best guesses."""
    taken = None if older is None else take_over(study, older, tree)
    queue_defaults(study)
    if older is not None and taken is not None:
        taken = queue_best(study, older, taken)
        logger.info("%s", taken.in_words(), extra={"action": "taken_over", "study": study.name})


def queue_defaults(study: Study) -> None:
    """Queue the base configuration, as far as it lies in the space: it is tried first, if no trial has it."""
    defaults = study.space.defaults()
    if defaults:
        whole = study.space.contains(defaults)
        with suppress(ConfigurationTakenError):
            steering.enqueue(study.storage.engine, study.registration.study_id, defaults, whole=whole)


def check_networks(file: StudyFile) -> None:
    """
    Accept the study if every network that it may ask for can be built, and its weights are there. Raises StudyFileError.

    ImageNet weights from the hub are left to the workers: their machines may have them where this one has not.
    """
    alike: dict[tuple[Any, ...], list[TrainConfig]] = defaultdict(list)
    for config in file.space().corners():
        alike[config.arch, config.weights, config.freeze, config.img_size].append(config)
    for configs in alike.values():
        # One with all that any of them asks for: a network that can be built with an option can be without.
        most = {name: max(getattr(config, name) for config in configs) for name in ("dropout", "drop_path")}
        weights = "none" if configs[0].weights == "imagenet" else configs[0].weights
        config = configs[0].model_copy(update={**most, "weights": weights})
        n_features = int(any(config.embeddings_dir is not None for config in configs))
        try:
            build_network(config, _N_CLASSES, file.seed, n_features)
        except InputError as error:
            raise StudyFileError(f"study {file.study!r}: {error}") from error


def settle_embeddings(file: StudyFile, embeddings: list[Embeddings], dataset: Dataset) -> StudyFile:
    """
    Return *file* with the hash of the vectors in each folder that it may ask for: a worker refuses others.

    Raises:
        InputError: A folder has no vector for an image.
    """
    hashes = {str(each.folder): each.attach(dataset).features_hash for each in embeddings}
    return file.model_copy(update={"data": file.data.model_copy(update={"embeddings": hashes})})


def check_balance(file: StudyFile, dataset: Dataset, folds: Folds) -> None:
    """Accept the study if every way to balance classes that it may ask for fits the data. Raises StudyFileError."""
    counts = training_counts(dataset, folds.split(0))
    for config in {config.class_weights: config for config in file.space().corners()}.values():
        try:
            resolve_balance(config, counts)
        except InputError as error:
            raise StudyFileError(f"study {file.study!r}: {error}") from error
