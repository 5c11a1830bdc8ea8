"""A pickle runs what it likes when it is read: none is, in place of any file that a run takes up."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.checkpoint import LAST, Origin, load, read_checkpoint
from trainer.config import TrainConfig
from trainer.embeddings import FEATURES, METADATA, read_embeddings
from trainer.errors import InputError
from trainer.records import Resolution
from trainer.weights import file_weights


class Bomb:
    """An object whose pickle makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.folder,)


@pytest.fixture
def bomb(tmp_path: Path) -> Bomb:
    """A bomb whose folder is not there yet."""
    return Bomb(tmp_path / "made")


def zipped(bomb: Bomb, path: Path) -> None:
    """Write *bomb* as torch writes checkpoints."""
    torch.save({"model_state_dict": {"weight": bomb}}, path)


def tarred(bomb: Bomb, path: Path) -> None:
    """Write *bomb* as torch wrote checkpoints long ago."""
    torch.save({"model_state_dict": {"weight": bomb}}, path, _use_new_zipfile_serialization=False)


def plain(bomb: Bomb, path: Path) -> None:
    """Write *bomb* as the pickle that it is."""
    path.write_bytes(pickle.dumps(bomb))


def array(bomb: Bomb, path: Path) -> None:
    """Write *bomb* as the one element of an array."""
    with path.open("wb") as file:
        np.save(file, np.array([bomb], dtype=object), allow_pickle=True)


def archive(bomb: Bomb, path: Path) -> None:
    """Write *bomb* as numpy writes several arrays."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("features.npy", pickle.dumps(bomb))


def refused(read: Callable[[Path], object], path: Path, bomb: Bomb) -> None:
    """Check that *read* refuses *path* in one line that names it, and that the bomb is whole."""
    with pytest.raises(InputError, match=path.name) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert not Path(bomb.folder).exists()


def test_the_bomb_works(bomb: Bomb) -> None:
    """Who unpickles it finds the folder: the tests below would see it."""
    pickle.loads(pickle.dumps(bomb))  # noqa: S301 - that is the point
    assert Path(bomb.folder).is_dir()


@pytest.mark.parametrize("write", [zipped, tarred, plain])
def test_weights(tmp_path: Path, bomb: Bomb, write: Callable[[Bomb, Path], None]) -> None:
    """--weights FILE, under both of its suffixes."""
    for name in ("weights.pth", "weights.safetensors"):
        write(bomb, tmp_path / name)
        refused(file_weights, tmp_path / name, bomb)


@pytest.mark.parametrize("write", [zipped, tarred, plain])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's, beside the refusal
def test_checkpoint(
    tmp_path: Path,
    bomb: Bomb,
    write: Callable[[Bomb, Path], None],
    caplog: pytest.LogCaptureFixture,
    resolution: Resolution,
) -> None:
    """The last checkpoint of a run that is taken up again: its epochs are trained anew, and one line says so."""
    write(bomb, tmp_path / LAST)
    refused(read_checkpoint, tmp_path / LAST, bomb)
    origin = Origin(
        config=TrainConfig(),
        fold=0,
        seed=0,
        data_hash="",
        features_hash=None,
        sides_hash="",
        resolution=resolution,
        class_names=("1", "2"),
    )
    assert load(tmp_path, origin) is None
    assert [record.getMessage().count("\n") for record in caplog.records] == [0]
    assert "begins anew" in caplog.text
    assert not Path(bomb.folder).exists()


@pytest.mark.parametrize("write", [array, plain, archive])
def test_features(tmp_path: Path, bomb: Bomb, write: Callable[[Bomb, Path], None]) -> None:
    """The vectors of another backbone."""
    write(bomb, tmp_path / FEATURES)
    (tmp_path / METADATA).write_text("image,accession,path\na,b,c\n")
    refused(lambda path: read_embeddings(path.parent), tmp_path / FEATURES, bomb)
