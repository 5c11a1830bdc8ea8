"""A finished trial, trained again from the database alone: equal to the bit, or the reason is named. And a study that goes on."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
import sqlalchemy as sa
import torch
from optuna.trial import TrialState

from hpo.comparison import Comparison, compare
from hpo.creation import create
from hpo.errors import NotTheStudysDataError
from hpo.objective import Training, begin
from hpo.replay import recall, replay
from hpo.station import Station, set_up_station
from hpo.study import DataPlace, Study
from hpo.study_file import StudyFile
from hpo.worker import Worker
from storage.claims import Claim, Ending
from storage.patience import Patience
from storage.record import describe_files
from storage.study_storage import open_storage
from storage.tree import OutputTree
from tests.laboratory import Laboratory
from trainer.by_hand import Quiet
from trainer.data.phantom import make_phantom
from trainer.errors import StopRequestedError
from trainer.fit import fit

TRAIN = {
    "arch": "test_efficientnet",
    "weights": "none",
    "img_size": 32,
    "epochs": 2,
    "batch_size": 8,
    "backbone_lr": 1e-3,
}
SEARCH = {
    "lr": {"type": "float", "low": 1e-3, "high": 1e-2, "log": True},
    "train_augment": {"type": "categorical", "choices": [False, True]},
}
NEVER = threading.Event()
PRUNED, COMPLETE = 0, 1


@pytest.fixture(scope="module", autouse=True)
def _process_as_before() -> Iterator[None]:
    """Leave the process's threads and determinism as they were."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


@dataclass(frozen=True)
class Searched:
    """A finished study of two trials, trained in this very process on one thread: one given up after a fold, one complete."""

    study: Study
    place: DataPlace
    url: sa.URL

    @property
    def replays(self) -> Path:
        """Where replays go."""
        return self.study.folder.path / "replays"

    def again(
        self, number: int, *, threads: int | None = None, check: bool = True, stop: threading.Event = NEVER
    ) -> Comparison:
        """Replay a trial and hold it against what the database remembers."""
        original = recall(self.study, number)
        replayed = replay(
            original, self.place, device="auto", threads=threads, despite_other_data=check, stop=stop, progress=None
        )
        return compare(original, replayed)


@pytest.fixture(scope="module")
def searched(database_server: sa.URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searched]:
    """The study, in a database of its own."""
    folder, name = tmp_path_factory.mktemp("replay"), f"test_{uuid.uuid4().hex}"
    make_phantom(folder, patients=16, side=64)
    content = {
        "study": "small", "data": {"csv": folder / "classificacao.csv", "dicom_root": folder / "archive"},
        "cv": {"folds": 2}, "train": {**TRAIN, "export_embeddings": True}, "search": SEARCH, "budget": {"trials": 2},
    }  # fmt: skip
    file, tree, url = (
        StudyFile.model_validate(content),
        OutputTree(folder / "outputs"),
        database_server.set(database=name),
    )
    admin = sa.create_engine(database_server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"create database {name}")
    storage = open_storage(url, application_name="test")
    place = DataPlace.choose(file, tree, csv=None, dicom_root=None)
    study = create(file, place, tree, storage, None)
    station = set_up_station(
        study, tree, device="cpu", per_gpu=1, threads=1, patience=Patience(5), stop=NEVER, csv=None, dicom_root=None
    )
    give_up_after_a_fold(station)
    Worker(station.claims, Training(station), threading.Event()).run()
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED, TrialState.COMPLETE]
    yield Searched(study, place, url)
    storage.engine.dispose()
    with admin.connect() as connection:
        connection.exec_driver_sql(f"drop database {name} with (force)")


def give_up_after_a_fold(station: Station) -> None:
    """Train and publish the first fold of a trial, and prune it."""
    claim = station.claims.claim()
    assert isinstance(claim, Claim)
    trial = begin(station, claim, NEVER)
    dataset, folds = station.data(trial.config)
    folder = trial.folder.fold(0)
    result = fit(
        trial.config, dataset, folds.split(0), trial.seeds.fold(0),
        compute=trial.compute, folder=folder, listener=Quiet(), stop=NEVER,
    )  # fmt: skip
    assert result.score is not None
    station.claims.publish_fold(claim, 0, result.score, describe_files(folder, prefix="fold_0/"))
    trial.folder.publish(0)
    station.claims.finish(claim, Ending.PRUNED, attributes={"reason": "hopeless"})


@contextmanager
def moved(path: Path, place: Path) -> Iterator[None]:
    """Have *path* lie at *place* while the block runs."""
    path.rename(place)
    try:
        yield
    finally:
        place.rename(path)


def test_a_trial_whose_folder_is_gone_comes_out_again_to_the_bit(searched: Searched, tmp_path: Path) -> None:
    """By the command as a user gives it: exit 0 and one line; its files are those of a trial, beside the next replay's."""
    trial, value = searched.study.folder.trial(COMPLETE).path, searched.study.trials[COMPLETE].value
    files = {path.relative_to(trial) for path in trial.rglob("*") if path.is_file()}
    predictions = (trial / "oof_predictions.csv").read_bytes()
    laboratory = Laboratory(tmp_path, tmp_path, searched.place.outputs)
    with moved(trial, tmp_path / "away"):
        comparison = searched.again(COMPLETE)
        url = searched.url.render_as_string(hide_password=False)
        done = laboratory.run("replay", "small", COMPLETE, "--check", "--database", url)
    assert comparison.equal
    assert comparison.replay.value == value
    assert (done.code, done.out.count("\n")) == (0, 1), done.err
    assert done.out.startswith(f"trial 1: equal to the bit: value {value:.4f}")
    first, second = sorted(searched.replays.glob(f"trial_{COMPLETE:04d}_*"))[-2:]
    assert first == comparison.replay.folder
    left = {path.relative_to(second) for path in second.rglob("*") if path.is_file()}
    assert left == files - {Path("optuna_trial.json")}
    assert (second / "oof_predictions.csv").read_bytes() == predictions
    summary = json.loads((second / "summary.json").read_text())
    assert (summary["value"], summary["threads"]) == (value, 1)
    assert summary["command"].startswith("mammography replay small 1 --device cpu --threads 1")


def test_a_study_starts_from_another_one(searched: Searched, tmp_path: Path) -> None:
    """By the command: both trials come over, and the best of them is shown with the place where its files are."""
    content = {**searched.study.file.model_dump(mode="json", exclude={"data": {"embeddings"}}), "study": "next"}
    (tmp_path / "next.yaml").write_text(json.dumps(content))  # JSON is YAML
    laboratory = Laboratory(tmp_path, tmp_path, searched.place.outputs)
    database = ("--database", searched.url.render_as_string(hide_password=False))
    created = laboratory.run("study", "create", "next.yaml", "--from", "small", *database)
    assert created.code == 0, created.err
    assert "from small: 2 trials with their scores, at no cost to the budget" in created.err
    best = json.loads(laboratory.ok("study", "best", "next", "--json", *database))
    assert best["taken_over_from"] == {"study": "small", "number": COMPLETE}
    assert best["value"] == searched.study.trials[COMPLETE].value


def test_the_folds_of_a_pruned_trial_come_out_again(searched: Searched) -> None:
    """Only those that it had, and without a value, which it never had either."""
    comparison = searched.again(PRUNED)
    assert comparison.equal
    assert [fold.fold for fold in comparison.folds] == [0]
    assert comparison.replay.value is None
    left = {path.name for path in comparison.replay.folder.iterdir()}
    assert left == {"fold_0", "run.log", "summary.json"}
    assert comparison.in_words() == ["trial 0: equal to the bit: scores, predictions and metrics of 1 folds"]


def test_other_threads_are_named_as_the_reason(searched: Searched) -> None:
    """And how much they change, since the trial's own predictions are still there."""
    comparison = searched.again(COMPLETE, threads=2)
    assert not comparison.equal
    differences, *reasons = comparison.in_words()
    assert max(fold.probability or 0 for fold in comparison.folds) > 0
    assert "of a probability" in differences
    assert "fold 0: other " in differences
    assert "what differs: threads: 1 then, 2 now" in reasons
    assert not any("data" in reason for reason in reasons)


def test_other_data_are_refused_or_named(searched: Searched) -> None:
    """One image has become darker: without --check nothing is trained; with it the hash is named, and the difference said."""
    path = min(searched.place.dicom_root.rglob("*.dcm"))
    content = path.read_bytes()
    image = pydicom.dcmread(path)
    image.decompress()
    image.PixelData = (image.pixel_array // 2).tobytes()
    image.save_as(path)
    with pytest.raises(NotTheStudysDataError, match="the data differ from those of study 'small'"):
        searched.again(COMPLETE, check=False)
    comparison = searched.again(COMPLETE)
    path.write_bytes(content)
    assert not comparison.equal
    expected = searched.study.registration.data_hash[:12]
    assert any(line.startswith(f"what differs: data: hash {expected} then") for line in comparison.in_words())


def test_a_replay_that_is_asked_to_stop_leaves_nothing(searched: Searched) -> None:
    """It is begun anew the next time."""
    stop = threading.Event()
    stop.set()
    searched.replays.mkdir(exist_ok=True)
    before = set(searched.replays.iterdir())
    with pytest.raises(StopRequestedError, match="begin it anew"):
        searched.again(COMPLETE, stop=stop)
    assert set(searched.replays.iterdir()) == before
