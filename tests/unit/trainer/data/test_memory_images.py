from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from trainer.data.decoding import Outcome
from trainer.data.memory_images import MemoryWriter
from trainer.data.records import Code


def test_the_array_outlives_its_writer_and_no_more() -> None:
    """What was appended is there after the writer is closed, by name for other processes too, and goes with the array."""
    expected = np.random.default_rng(0).integers(0, 256, (5, 7, 7)).astype(np.uint8)
    with MemoryWriter(7) as writer:
        for image in expected:
            writer.add(Outcome("x"), image)
        images = writer.images(range(5))
    assert isinstance(images, np.memmap)
    name = Path(str(images.filename))
    assert np.array_equal(images, expected)
    assert np.array_equal(np.fromfile(name, dtype=np.uint8).reshape(5, 7, 7), expected)
    row = images[3]
    del images
    gc.collect()
    assert np.array_equal(row, expected[3])
    assert name.exists()
    del row
    gc.collect()
    assert not name.exists()


def test_rows_that_are_not_used() -> None:
    """Of images that turn out not to be used nothing is left, not even their bytes; files that were not decoded have none."""
    expected = np.random.default_rng(0).integers(0, 256, (5, 7, 7)).astype(np.uint8)
    with MemoryWriter(7) as writer:
        for image in expected:
            writer.add(Outcome(None, Code.UNDECODABLE, "broken"), None)
            writer.add(Outcome("x"), image)
        images = writer.images([0, 3, 4])
    assert np.array_equal(images, expected[[0, 3, 4]])
    assert Path(str(images.filename)).stat().st_size == 3 * 7 * 7


def test_a_build_that_fails_keeps_nothing() -> None:
    """An error while images are appended closes the file."""
    with pytest.raises(ValueError, match="broken"), MemoryWriter(7) as writer:
        raise ValueError("broken")
    assert writer._file.closed
