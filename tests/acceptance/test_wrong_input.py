"""Wrong input: exit code 2 and one line on standard error that says what and where."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.laboratory import STUDY, Laboratory


def refused(laboratory: Laboratory, *arguments: object) -> str:
    """Return the one line with which a command refuses its input."""
    finished = laboratory.run(*arguments)
    assert finished.code == 2, (finished.out, finished.err)
    assert finished.out == ""
    assert len(finished.err.splitlines()) == 1, finished.err
    return finished.err


def test_wrong_places_of_a_study(laboratory: Laboratory) -> None:
    """Files, folders and columns that are wrong are named."""
    labels, folder = laboratory.archive / "classificacao.csv", laboratory.folder
    file = folder / "study.yaml"
    create = ("study", "create", "study.yaml", "--dicom-root", laboratory.archive / "archive", "--csv")

    assert "study.yaml: no such study file" in refused(laboratory, *create, labels)
    file.write_text(STUDY)
    assert "nowhere.csv" in refused(laboratory, *create, "nowhere.csv")
    (folder / "columns.csv").write_text("Accession,Class\n1,2\n")
    assert "columns.csv" in (line := refused(laboratory, *create, "columns.csv"))
    assert "AccessionNumber" in line
    assert "nowhere" in refused(laboratory, "study", "create", "study.yaml", "--csv", labels, "--dicom-root", "nowhere")
    assert "--csv" in refused(laboratory, "study", "create", "study.yaml")


def test_wrong_study_files(laboratory: Laboratory) -> None:
    """Names and ranges that are wrong are named."""
    file = laboratory.folder / "study.yaml"
    labels = laboratory.archive / "classificacao.csv"
    create = ("study", "create", "study.yaml", "--dicom-root", laboratory.archive / "archive", "--csv")
    file.write_text(STUDY.replace("  lr:", "  learning_rate:"))
    assert "unknown name 'learning_rate'" in refused(laboratory, *create, labels)
    file.write_text(STUDY.replace("low: 1.0e-4, high: 1.0e-2", "low: 1.0e-2, high: 1.0e-4"))
    assert "search.lr: low (0.01) must not be above high (0.0001)" in refused(laboratory, *create, labels)
    file.write_text(STUDY + "budgets: 3\n")
    assert "unknown name 'budgets', did you mean 'budget'?" in refused(laboratory, *create, labels)
    file.write_text(STUDY.replace("study: small", "study: ../../x"))
    assert "cannot be a study's name" in refused(laboratory, *create, labels)


def test_wrong_names_of_studies(laboratory: Laboratory) -> None:
    """A name that is taken, and one that nobody has: the nearest known one is shown."""
    laboratory.study()
    again = ("study", "create", "study.yaml", *laboratory.data)
    assert "exists already" in refused(laboratory, *again)
    for command in (("study", "status"), ("study", "best"), ("study", "trials"), ("launch",), ("worker",)):
        assert "no study 'smal'; did you mean 'small'?" in refused(laboratory, *command, "smal")


def test_worker_with_other_data_refuses_to_start(laboratory: Laboratory, tmp_path: Path) -> None:
    """Data whose hash is not the study's end a worker and a launcher before anything is trained."""
    laboratory.study()
    labels = (laboratory.archive / "classificacao.csv").read_text().splitlines(keepends=True)
    (tmp_path / "fewer.csv").write_text("".join(labels[:-1]))
    places = ("--csv", tmp_path / "fewer.csv", "--dicom-root", laboratory.archive / "archive")
    for command in ("worker", "launch"):
        assert "the data differ from those of study 'small'" in refused(laboratory, command, "small", *places)
    assert laboratory.status()["trials"]["running"] == 0


def test_database_that_does_not_answer_is_one_line(laboratory: Laboratory) -> None:
    """Nobody listens there: exit 1, the place without the password."""
    finished = laboratory.run("study", "list", "--database", "postgresql://user:geheim@127.0.0.1:1/study")
    assert finished.code == 1
    assert len(finished.err.splitlines()) == 1
    assert "127.0.0.1" in finished.err
    assert "geheim" not in finished.err


@pytest.mark.parametrize("command", [(), ("study",), ("train-density",), ("launch",)])
def test_help_is_fast(laboratory: Laboratory, command: tuple[str, ...]) -> None:
    """`--help` answers in under a second, the best of three."""
    seconds = []
    for _ in range(3):
        before = time.perf_counter()
        assert "--" in laboratory.ok(*command, "--help")
        seconds.append(time.perf_counter() - before)
    assert min(seconds) < 1.0
