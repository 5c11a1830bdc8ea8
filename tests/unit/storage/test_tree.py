"""The output tree: what an attempt leaves becomes the trial's by renames, whatever dies in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.errors import FolderVanishedError, StudyFolderError, StudyNameError
from storage.tree import OutputTree, TrialFolder


@pytest.fixture
def trial(tmp_path: Path) -> TrialFolder:
    """The folder of trial 7."""
    return OutputTree(tmp_path).study("density").trial(7)


def write(path: Path, text: str) -> None:
    """Write a file with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("name", ["../../x", "", ".hidden", "a/b", "a b", "cache", "train", "x" * 101, "ä"])
def test_name_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    """A study's name cannot lead out of the output folder or hide in it."""
    with pytest.raises(StudyNameError, match="cannot be a study's name"):
        OutputTree(tmp_path).study(name)


def test_places(tmp_path: Path, trial: TrialFolder) -> None:
    """The places are those of the contract."""
    assert trial.path == tmp_path / "density" / "trial_0007"
    assert trial.record == trial.path / "optuna_trial.json"
    assert trial.fold(2) == trial.path / "fold_2"


def test_folder_of_a_new_study_must_be_empty(tmp_path: Path) -> None:
    """What another study left there would be taken for this one's published folds."""
    folder = OutputTree(tmp_path).study("density")
    folder.check_new()
    folder.path.mkdir()
    folder.check_new()
    folder.trial(0).fold(0).mkdir(parents=True)
    with pytest.raises(StudyFolderError, match="holds another study's files"):
        folder.check_new()


def test_published_fold_is_in_its_place(trial: TrialFolder) -> None:
    """A fold is trained below the attempt and found at its place once it is published."""
    attempt = trial.begin_attempt("a", [], {})
    write(attempt.fold(0) / "x", "x")
    assert attempt.published(0) is None
    attempt.publish(0)
    assert attempt.published(0) == trial.fold(0)
    assert (trial.fold(0) / "x").read_text() == "x"


def test_what_only_lies_there_is_not_published(trial: TrialFolder) -> None:
    """A fold that the database does not know is not taken for the trial's, whatever stands in its place."""
    write(trial.fold(0) / "x", "of another study")
    attempt = trial.begin_attempt("a", [], {})
    assert attempt.published(0) is None
    write(attempt.fold(0) / "x", "ours")
    with pytest.raises(OSError, match="not empty"):
        attempt.publish(0)


def test_publisher_that_died_before_the_rename_is_finished_by_the_successor(trial: TrialFolder) -> None:
    """What the database calls published is put in its place when the next attempt begins."""
    write(trial.begin_attempt("dead", [], {}).fold(0) / "x", "x")
    successor = trial.begin_attempt("next", ["dead"], {0: "dead"})
    assert successor.published(0) == trial.fold(0)


def test_published_fold_that_is_nowhere_is_an_error(trial: TrialFolder) -> None:
    """A published number without its files is never silently trained again."""
    with pytest.raises(FolderVanishedError, match="fold_0"):
        trial.begin_attempt("next", ["dead"], {0: "dead"})


def test_successor_continues_from_the_latest_attempt_that_left_a_checkpoint(trial: TrialFolder) -> None:
    """Checkpoints are copied, never moved: the dead attempt's folder stays as it is."""
    first = trial.begin_attempt("1", [], {})
    write(first.fold(1) / "last_model.pth", "one")
    second = trial.begin_attempt("2", ["1"], {})
    write(second.fold(1) / "last_model.pth", "two")
    write(second.fold(1) / "best_model.pth", "best")
    trial.begin_attempt("3", ["1", "2"], {})  # dies before it reaches the fold
    fourth = trial.begin_attempt("4", ["1", "2", "3"], {})
    folder = fourth.fold(1)
    assert (folder / "last_model.pth").read_text() == "two"
    assert (folder / "best_model.pth").read_text() == "best"
    write(folder / "last_model.pth", "four")
    assert (second.path / "fold_1" / "last_model.pth").read_text() == "two"
    assert (fourth.fold(1) / "last_model.pth").read_text() == "four", "asked again, the folder is as it was left"


def test_log_goes_on_where_the_last_attempt_stopped(trial: TrialFolder) -> None:
    """`run.log` tells the whole story of a trial."""
    write(trial.begin_attempt("1", [], {}).path / "run.log", "first attempt\n")
    assert (trial.begin_attempt("2", ["1"], {}).path / "run.log").read_text() == "first attempt\n"


def test_promotion_can_be_repeated_and_leaves_no_attempt(trial: TrialFolder) -> None:
    """After promotion the trial's folder holds the finished attempt's files and no attempt's folder."""
    write(trial.begin_attempt("dead", [], {}).path / "run.log", "dead")
    write(trial.begin_attempt("done", ["dead"], {}).path / "optuna_trial.json", "{}")
    assert trial.unpromoted()
    trial.promote("done")
    trial.promote("done")
    assert trial.record.read_text() == "{}"
    assert not trial.unpromoted()
