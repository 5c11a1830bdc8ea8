"""A backbone's features as a user gets them: the files, once, and never over others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.laboratory import Finished, Laboratory

SMALL = ("--arch", "tf_efficientnet_lite0", "--weights", "bundled", "--img-size", "32", "--threads", "1")


def contents(folder: Path) -> dict[str, bytes]:
    """Return what is in the files of *folder*."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def one_line(finished: Finished) -> str:
    """Return the one line, beside log lines, with which a command refuses its input."""
    assert finished.code == 2, (finished.out, finished.err)
    assert finished.out == ""
    assert "Traceback" not in finished.err
    lines = [line for line in finished.err.splitlines() if line.startswith("mammography: ")]
    assert len(lines) == 1, finished.err
    return lines[0]


def test_features_of_every_image(laboratory: Laboratory) -> None:
    """With the lone dashes of the reference: the files, once; the same command again says so, another one is refused."""
    command = ("embed", "--", *laboratory.data, "--outdir", "outputs/features", *SMALL)
    assert laboratory.ok(*command).splitlines() == ["features: (96, 1280) float32", "outputs/features"]
    folder = laboratory.folder / "outputs" / "features"
    features = np.load(folder / "features.npy", allow_pickle=False)
    assert features.dtype == np.float32
    assert features.shape == (96, 1280)
    assert np.isfinite(features).all()
    metadata = pd.read_csv(folder / "metadata.csv", dtype=str)
    assert list(metadata.columns) == ["image", "accession", "path"]
    assert len(metadata) == 96
    assert metadata["image"].is_unique
    assert metadata["accession"].str.startswith("0").all()
    assert all((laboratory.folder / path).is_file() for path in metadata["path"])
    assert json.loads((folder / "embeddings.json").read_text())["n_images"] == 96

    before = contents(folder)
    again = laboratory.ok(*(part for part in command if part != "--"))
    assert again.splitlines() == ["features: (96, 1280) float32, there already", "outputs/features"]
    line = one_line(laboratory.run(*command, "--no-crop-breast"))
    assert "outputs/features: holds other embeddings" in line
    assert contents(folder) == before


def test_wrong_input(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is missing or cannot be had is one line that names it, and no folder is made."""
    csv, root = laboratory.data[:2], laboratory.data[2:]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    for arguments, complaint in (
        ((*root, "--outdir", "features"), "--csv"),
        ((*csv, "--outdir", "features"), "--dicom-root"),
        ((*csv, *root), "--outdir"),
        (("--csv", "nowhere.csv", *root, "--outdir", "features", *SMALL), "nowhere.csv"),
        ((*csv, *root, "--outdir", "features", "--img-size", "big"), "--img-size"),
        ((*csv, *root, "--outdir", "features", "--arch", "resnet5"), "timm knows no model 'resnet5'"),
        (
            (*csv, *root, "--outdir", "features", "--weights", "imagenet"),
            "imagenet for resnet50 are not in the local cache",
        ),
    ):
        assert complaint in one_line(laboratory.run("embed", "--", *arguments))
    assert not (laboratory.folder / "features").exists()
