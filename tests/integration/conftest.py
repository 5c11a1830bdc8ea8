"""A study whose trials show something, for the tests of what they show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.artifact_lab import Lab, open_lab
from trainer.data.phantom import make_phantom


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic archive; beside it `outputs`, where it is decoded once for all studies."""
    folder = tmp_path_factory.mktemp("archive")
    make_phantom(folder, patients=16, side=64)
    return folder


@pytest.fixture
def lab(archive: Path, database_url: sa.URL) -> Iterator[Lab]:
    """A new study on the archive, in a database of its own."""
    with open_lab(archive, database_url, pseudonyms=False) as lab:
        yield lab
