"""A laboratory for each test, and one archive for all of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.laboratory import Laboratory


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic archive of 24 patients, made by the command."""
    archive = tmp_path_factory.mktemp("phantom")
    subprocess.run(
        [sys.executable, "-m", "hpo.cli", "data", "phantom", str(archive), "--patients", "24"],
        check=True,
        capture_output=True,
    )
    return archive


@pytest.fixture
def laboratory(tmp_path: Path, phantom: Path) -> Iterator[Laboratory]:
    """An empty output folder beside the archive."""
    made = Laboratory(tmp_path, phantom, tmp_path / "outputs")
    yield made
    made.close()
