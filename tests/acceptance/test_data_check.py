"""An archive as it comes, looked at and used as a user would."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from tests.laboratory import STUDY, Laboratory
from trainer.data.phantom import make_phantom


def make_public_archive(folder: Path) -> None:
    """A synthetic archive as RSNA publishes its own: folders by patient, files by image, another site without grades."""
    make_phantom(folder / "phantom", patients=14, side=64)
    with (folder / "phantom" / "classificacao.csv").open() as file:
        grade_of = {row["AccessionNumber"]: "ABCD"[int(row["Classification"]) - 1] for row in csv.DictReader(file)}
    rows = ["site_id,patient_id,image_id,laterality,view,age,cancer,density"]
    for number, (accession, grade) in enumerate(sorted(grade_of.items())):
        for path in sorted((folder / "phantom" / "archive" / accession).iterdir()):
            laterality, view = path.stem.split("_")
            place = folder / "images" / f"7{number:03d}" / f"{accession}{laterality}{view}.dcm"
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
            grade_here = "" if number == 3 else grade
            rows.append(f"1,7{number:03d},{place.stem},{laterality},{view},50,0,{grade_here}")
    (folder / "train.csv").write_text("\ufeff" + "\r\n".join(rows) + "\r\n", encoding="utf-8")


def test_a_malformed_archive(laboratory: Laboratory, tmp_path: Path) -> None:
    """Every broken file is listed with its code, the result is one JSON object, and the sheet shows something."""
    archive = tmp_path / "malformed"
    make_phantom(archive, patients=42, side=64, malformed=True)
    places = ("--csv", archive / "classificacao.csv", "--dicom-root", archive / "archive")
    report = json.loads(laboratory.ok("data", "check", *places, "--img-size", "64", "--json", "--preview", "sheet.png"))
    assert report["usable"]
    assert {"TRUNCATED", "UNDECODABLE", "NOT_IMAGE", "NOT_MAMMOGRAPHY", "MULTIFRAME", "BLANK", "TOO_LARGE"} < set(
        report["rejected"]
    )
    with (laboratory.outputs / "data_report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(report["rejected"].values())
    assert np.asarray(Image.open(laboratory.folder / "sheet.png")).std() > 30
    finished = laboratory.run("data", "check", *places, "--img-size", "64", "--max-rejected", "0.01")
    assert finished.code == 2
    assert "more than max_rejected 0.01" in finished.err.splitlines()[-1]
    assert "not used: " in finished.out


def test_labels_that_are_wrong(laboratory: Laboratory, tmp_path: Path) -> None:
    """An unknown value ends every command in one line that names row and value, and is counted where that is asked for."""
    text = (laboratory.archive / "classificacao.csv").read_text().splitlines()
    accession, _, date = text[4].split(",")
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join([*text[:4], f"{accession},7,{date}", *text[5:]]))
    places = ("--csv", labels, "--dicom-root", laboratory.archive / "archive")
    finished = laboratory.run("train-density", "--", *places, "--arch", "test_efficientnet", "--weights", "none")
    assert (finished.code, finished.out, len(finished.err.splitlines())) == (2, "", 1)
    assert f"{labels}: line 5" in finished.err
    assert "'7'" in finished.err
    assert accession not in finished.err
    checked = laboratory.ok("data", "check", *places, "--skip-unknown-labels", "--img-size", "32", "--json")
    assert json.loads(checked)["rejected"] == {"UNKNOWN_LABEL": 4}


def test_a_public_archive_under_pseudonyms(laboratory: Laboratory, tmp_path: Path) -> None:
    """A study on a published label file runs under pseudonyms, and no identifier is in any file that it leaves."""
    make_public_archive(tmp_path)
    study = (
        STUDY.replace("cv: {folds: 3}", "cv: {folds: 2}")
        .replace("trials: 4", "trials: 1")
        .replace("epochs: 2", "epochs: 1")
    )
    data = "data: {csv: train.csv, dicom_root: images, pseudonyms: true, classes: binary, views: [CC, MLO]}\n"
    (laboratory.folder / "study.yaml").write_text(data + study)
    laboratory.ok("study", "create", "study.yaml")
    laboratory.ok("worker", "small", "--threads", "1")
    best = json.loads(laboratory.ok("study", "best", "small", "--json"))
    assert best["n_folds_done"] == 2
    folder = laboratory.outputs / "small"
    with (folder / "trial_0000" / "oof_predictions.csv").open(newline="") as file:
        predictions = list(csv.DictReader(file))
    assert len(predictions) == 13 * 4
    assert {row["label"] for row in predictions} == {"A-B", "C-D"}
    assert len({row["patient"] for row in predictions}) == 13
    record = json.loads((folder / "study.json").read_text())
    assert record["rejected"] == {"NO_LABEL": 4}
    identifiers = [f"7{number:03d}/" for number in range(14)] + ["PHANTOM000", "0000001", "0000014"]
    written = [path for path in laboratory.outputs.rglob("*") if path.suffix in {".csv", ".json", ".log", ".txt"}]
    assert len(written) > 10
    for path in written:
        content = path.read_text(errors="replace")
        assert not [name for name in identifiers if name in content], path


def test_a_stop_while_images_are_decoded(laboratory: Laboratory) -> None:
    """SIGTERM ends a worker that decodes at once and in order, and what it has decoded is kept for the next one."""
    laboratory.study()
    for folder in (laboratory.outputs / "cache").glob("*/"):
        shutil.rmtree(folder)
    worker = laboratory.start("worker", "small")
    assert worker.stderr is not None
    assert any("decoding 96 images" in line for line in worker.stderr)
    worker.terminate()
    _, said = worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert "asked to stop while decoding images" in said.splitlines()[-1]
    assert list(laboratory.outputs.glob("cache/*.building/journal.csv"))
