"""A backbone's features as a user gets them: the files, never over others, and seen by a network beside its own."""

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
    (folder / "embeddings.json").rename(folder.parent / "kept.json")
    assert laboratory.ok(*command).splitlines()[0] == "features: (96, 1280) float32"  # as after an interruption
    assert all((folder / name).read_bytes() == before[name] for name in ("features.npy", "metadata.csv"))

    before = contents(folder)
    line = one_line(laboratory.run(*command, "--no-crop-breast"))
    assert "outputs/features: holds other embeddings" in line
    assert contents(folder) == before


def test_a_network_sees_them_beside_its_own(laboratory: Laboratory) -> None:
    """With --embeddings-dir the head is wider by them and the run says which; an image without a vector is named."""
    laboratory.ok("embed", *laboratory.data, "--outdir", "features", *SMALL)
    train = ("train-density", *laboratory.data, *SMALL, "--epochs", "1", "--outdir", "runs")
    laboratory.ok(*train)
    laboratory.ok(*train, "--embeddings-dir", "features")
    plain, fused = (
        json.loads((laboratory.folder / "runs" / f"results_{number}" / "summary.json").read_text()) for number in (1, 2)
    )
    assert plain["data_hash"] == fused["data_hash"]  # the same images: their trials share folds
    assert plain["embeddings_hash"] is None
    assert len(fused["embeddings_hash"]) == 64
    assert fused["config"]["embeddings_dir"] == str(laboratory.folder / "features")

    folder = laboratory.folder / "features"
    metadata = pd.read_csv(folder / "metadata.csv", dtype=str)
    lost = metadata["image"][0]
    metadata["image"] = metadata["image"].replace(lost, "elsewhere")
    metadata["accession"] = metadata["accession"].where(metadata["image"] != "elsewhere", "none")
    metadata.to_csv(folder / "metadata.csv", index=False)
    line = one_line(laboratory.run(*train, "--embeddings-dir", "features"))
    assert "its metadata.csv is not the one that embeddings.json records" in line
    (folder / "embeddings.json").unlink()  # as another program's
    assert f"no vector for image {lost}" in one_line(laboratory.run(*train, "--embeddings-dir", "features"))
    assert "nowhere" in one_line(laboratory.run(*train, "--embeddings-dir", "nowhere"))
    assert not (laboratory.folder / "runs" / "results_3").exists()


def test_files_of_others_stay(laboratory: Laboratory) -> None:
    """A folder with another program's table is refused and stays as it is."""
    folder = laboratory.folder / "features"
    folder.mkdir()
    (folder / "metadata.csv").write_text("image\nmine\n")
    line = one_line(laboratory.run("embed", *laboratory.data, "--outdir", "features", *SMALL))
    assert "features: holds another metadata.csv" in line
    assert (folder / "metadata.csv").read_text() == "image\nmine\n"
    assert not (folder / "features.npy").exists()


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
