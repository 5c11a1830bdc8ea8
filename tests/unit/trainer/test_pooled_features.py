"""The work of `embed`: vectors that timm gives too, computed once, and nothing of others lost."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from hpo import cli
from trainer.cli import checked, to_flags
from trainer.config import EmbedConfig
from trainer.data.cache import open_dataset
from trainer.data.phantom import make_phantom
from trainer.data.records import Dataset
from trainer.embeddings import EmbeddingRecord, Origin, read_embeddings
from trainer.errors import InputError, StopRequestedError
from trainer.model import build_network
from trainer.pooled_features import _origin, embed
from trainer.weights import bundled_weights, load_weights

ARCH = "tf_efficientnet_lite0"

Make = Callable[..., EmbedConfig]


@dataclass(frozen=True)
class Run:
    """One run, and what it left: tests read it, and write elsewhere."""

    config: EmbedConfig
    record: EmbeddingRecord
    computed: bool
    told: list[tuple[str, int, int]]
    """Files read or decoded, of how many."""
    cache: Path

    @property
    def vectors(self) -> NDArray[np.float32]:
        """The content of features.npy."""
        vectors: NDArray[np.float32] = np.load(self.config.outdir / "features.npy", allow_pickle=False)
        return vectors


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with the bundled weights on a synthetic archive of four patients, 16 images."""
    folder = tmp_path_factory.mktemp("run")
    make_phantom(folder, patients=4, seed=5)
    config = EmbedConfig(
        csv=folder / "classificacao.csv", dicom_root=folder / "archive", cache_dir=folder / "cache",
        arch=ARCH, weights="bundled", img_size=32, batch_size=5, threads=1, outdir=folder / "embeddings",
    )  # fmt: skip
    told: list[tuple[str, int, int]] = []
    threads = torch.get_num_threads()
    record, computed = embed(config, folder, progress=lambda *call: told.append(call))
    torch.set_num_threads(threads)
    return Run(config, record, computed, told, folder / "cache")


@pytest.fixture
def make(run: Run, tmp_path: Path) -> Make:
    """A function that returns the run's configuration with another folder and the fields that it is given."""

    def changed(**fields: object) -> EmbedConfig:
        return EmbedConfig.model_validate({**dict(run.config), "outdir": tmp_path / "embeddings", **fields})

    return changed


def contents(folder: Path) -> dict[str, bytes]:
    """Return what is in the files of *folder*."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_vectors_are_those_of_timm(run: Run) -> None:
    """A network of timm's without a head, fed by hand, gives the same for every image, in the order of the table."""
    config = run.config
    dataset = open_dataset(config.csv, config.dicom_root, config.train_config().preprocessing(), run.cache)
    reference = timm.create_model(ARCH, num_classes=0).eval()
    weights = bundled_weights(ARCH)
    reference.load_state_dict({name: weights[name] for name in reference.state_dict()})
    images = torch.from_numpy(np.array(dataset.images)).unsqueeze(1).repeat(1, 3, 1, 1)
    with torch.inference_mode():
        expected = reference((images / 255 - 0.5) / 0.5)
    assert run.vectors.dtype == np.float32
    assert run.vectors.shape == (len(dataset.records), 1280)
    assert np.allclose(run.vectors, expected.numpy(), atol=1e-4)
    with (config.outdir / "metadata.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["image"], row["accession"]) for row in rows] == [(own.path, own.accession) for own in dataset.records]
    assert all(Path(row["path"]) == config.dicom_root / row["image"] and Path(row["path"]).is_file() for row in rows)
    features = read_embeddings(config.outdir).attach(dataset).features
    assert features is not None
    assert np.array_equal(features, run.vectors)


def test_the_record_says_what_was_done(run: Run) -> None:
    """Network, data, versions, device, times, and a command that is the same configuration again."""
    assert run.computed
    written = json.loads((run.config.outdir / "embeddings.json").read_text())
    assert written == run.record.model_dump(mode="json")
    assert (written["origin"]["arch"], written["weights"]) == (ARCH, "bundled")
    assert written["origin"]["preprocessing"]["img_size"] == 32
    assert written["resolution"]["precision"] == "float32"
    assert written["versions"]["timm"] == timm.__version__
    assert (written["n_images"], written["n_features"]) == run.vectors.shape
    assert written["started_at"] < written["finished_at"]
    assert written["started_at"].endswith("Z")
    assert to_flags(run.config) == written["command"].split()[2:]
    command = cli.mammography.get_command(None, "embed")  # type: ignore[arg-type]
    assert command is not None
    given = command.make_context("embed", written["command"].split()[2:]).params
    assert checked(EmbedConfig, given) == run.config
    assert run.told[-1] == ("decoding", 16, 16)


def test_the_same_again_computes_nothing(run: Run, make: Make) -> None:
    """The files stay as they are, although the copy of the archive, the batch and the threads are others."""
    outdir = run.config.outdir
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in outdir.iterdir()}
    moved = run.config.dicom_root.parent / "moved"
    moved.symlink_to(run.config.dicom_root)
    record, computed = embed(make(outdir=outdir, dicom_root=moved, batch_size=7, threads=2), outdir)
    assert not computed
    assert record == run.record
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in outdir.iterdir()} == before


def test_other_embeddings_are_never_overwritten(run: Run, make: Make) -> None:
    """Other images and another treatment of them: refused, with what is there and what differs."""
    before = contents(run.config.outdir)
    with pytest.raises(InputError) as caught:
        embed(make(outdir=run.config.outdir, img_size=40), run.config.outdir)
    assert f"{run.config.outdir}: holds other embeddings, of {ARCH} with weights bundled" in str(caught.value)
    assert "other preprocessing, data_hash" in str(caught.value)
    assert contents(run.config.outdir) == before


@pytest.mark.parametrize("left", ["metadata.csv", "features.npy"])
def test_what_an_interruption_left_is_completed(run: Run, make: Make, left: str) -> None:
    """Without a record, whichever file is there already, running again gives the same bytes."""
    config = make()
    config.outdir.mkdir()
    shutil.copy(run.config.outdir / left, config.outdir / left)
    _, computed = embed(config, config.outdir)
    assert computed
    after, expected = contents(config.outdir), contents(run.config.outdir)
    assert after.keys() == expected.keys()
    assert all(after[name] == expected[name] for name in ("features.npy", "metadata.csv"))


def test_vectors_of_others_are_never_overwritten(run: Run, make: Make) -> None:
    """Without a record they are compared with those that would take their place; unrelated files are nobody's business."""
    config = make()
    config.outdir.mkdir()
    np.save(config.outdir / "features.npy", run.vectors + 1)
    (config.outdir / "notes.txt").write_text("mine")
    before = contents(config.outdir)
    with pytest.raises(InputError, match=r"holds another features\.npy"):
        embed(config, config.outdir)
    assert contents(config.outdir) == before


def test_a_stop_leaves_nothing(make: Make, stop_after: Callable[[int], object]) -> None:
    """Asked in the middle of the images, no file is there."""
    config = make()
    with pytest.raises(StopRequestedError, match="no features were written"):
        embed(config, config.outdir, stop=stop_after(2))  # type: ignore[arg-type]
    assert contents(config.outdir) == {}


def test_weights_that_give_no_numbers_are_refused(make: Make, tmp_path: Path) -> None:
    """What is not finite is never written."""
    path = tmp_path / "broken.safetensors"
    state = timm.create_model("test_efficientnet").state_dict()
    state["conv_stem.weight"] = state["conv_stem.weight"] * float("nan")
    save_file(state, path)
    config = make(arch="test_efficientnet", weights=str(path))
    with pytest.raises(InputError, match="expected finite"):
        embed(config, config.outdir)
    assert contents(config.outdir) == {}


def test_a_file_in_the_folders_place_is_refused(make: Make) -> None:
    """One line, before anything is decoded."""
    config = make(csv="nowhere.csv")
    config.outdir.write_text("mine")
    with pytest.raises(InputError, match="embeddings: is a file, expected a folder"):
        embed(config, config.outdir)
    assert config.outdir.read_text() == "mine"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arch": "resnet51"}, "timm knows no model 'resnet51'"),
        ({"arch": "resnet50"}, f"bundled are for arch {ARCH}"),
        ({"weights": "nowhere.pth"}, r"nowhere\.pth"),
        ({"device": "cuda:99"}, "device: cuda:99"),
    ],
)
def test_wrong_networks_are_refused_before_decoding(make: Make, fields: dict[str, object], message: str) -> None:
    """Network, weights and device are looked at before the data, and no folder is made."""
    config = make(csv="nowhere.csv", **fields)
    with pytest.raises(InputError, match=message):
        embed(config, config.outdir)
    assert not config.outdir.exists()


def test_the_tensors_say_which_backbone_it_is(make: Make, dataset: Dataset, tmp_path: Path) -> None:
    """The same ones in another file are the same, other ones in the same file are not, and the head is nobody's."""
    path, copy = tmp_path / "backbone.safetensors", tmp_path / "copy.safetensors"

    def origin(file: Path) -> Origin:
        load_weights.cache_clear()  # as another process would, read the file again
        config = make(arch="test_efficientnet", weights=str(file))
        return _origin(config, build_network(config.train_config(), 1, seed=0), dataset)

    state = timm.create_model("test_efficientnet").state_dict()
    save_file(state, path)
    save_file({**state, "classifier.weight": state["classifier.weight"] + 1}, copy)
    first = origin(path)
    assert origin(copy) == first
    save_file({**state, "conv_stem.weight": state["conv_stem.weight"] + 1}, path)
    assert origin(path).backbone_sha256 != first.backbone_sha256
