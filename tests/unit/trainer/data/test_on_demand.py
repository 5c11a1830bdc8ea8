from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from trainer.config import PreprocessingConfig
from trainer.data.image_file import read_mammogram
from trainer.data.on_demand import OnDemand
from trainer.data.preprocess import preprocess
from trainer.errors import DataError

CONFIG = PreprocessingConfig(img_size=64)


@pytest.fixture
def images(phantom: Path) -> OnDemand:
    """The images of a synthetic archive."""
    root = phantom / "archive"
    return OnDemand(root, tuple(sorted(path.relative_to(root).as_posix() for path in root.rglob("*.dcm"))), CONFIG)


def test_what_is_read_is_what_preprocessing_makes(images: OnDemand) -> None:
    """Images come in the order that is asked for, again where they are asked for twice, here and after pickling."""
    expected = [
        preprocess(read_mammogram(images.root / images.paths[index], apply_window=True), CONFIG) for index in (9, 0, 9)
    ]
    for source in (images, pickle.loads(pickle.dumps(images))):  # noqa: S301 - our own
        read = source.read(np.array([9, 0, 9]))
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, expected)
    assert images.read(np.array([], dtype=np.int64)).shape == (0, 64, 64)


def test_the_array_that_it_would_be(images: OnDemand) -> None:
    """Shape and size are those of the array, of which nothing is made, and what is sent to a process is small."""
    assert images.shape == (64, 64, 64)
    assert images.nbytes == 64**3
    assert len(pickle.dumps(images)) < 64 * 100


@pytest.mark.parametrize("content", [None, b"", b"\0" * 1000])
def test_a_file_that_cannot_be_decoded_any_more(images: OnDemand, tmp_path: Path, content: bytes | None) -> None:
    """It is an error in one line that names the file."""
    moved = OnDemand(Path(shutil.copytree(images.root, tmp_path / "copy")), images.paths, CONFIG)
    path = moved.root / moved.paths[3]
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert len(moved.read(np.array([2, 4]))) == 2
    with pytest.raises(DataError) as error:
        moved.read(np.array([2, 3]))
    assert str(error.value).startswith(f"{path}: cannot be decoded any more: ")
    assert "\n" not in str(error.value)
