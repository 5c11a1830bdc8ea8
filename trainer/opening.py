"""The data set of a command by hand: where its flags say, with what they say of it."""

from __future__ import annotations

from pathlib import Path

from trainer.config import ArchiveConfig, PreprocessingConfig
from trainer.data.cache import CacheMode, open_dataset
from trainer.data.naming import choose_naming
from trainer.data.progress import Progress, stoppable
from trainer.data.records import Dataset
from trainer.protocols import StopSignal


def open_archive(
    config: ArchiveConfig,
    preprocessing: PreprocessingConfig,
    outputs: Path,
    *,
    cache_mode: CacheMode = "disk",
    expected_hash: str | None = None,
    stop: StopSignal | None,
    progress: Progress | None,
    despite_broken: bool = False,
) -> Dataset:
    """
    Return the decoded data set of *config*; what it leaves open is in *outputs*.

    Raises:
        StopRequestedError: asked to *stop*; what is decoded is kept.
        DataError: and others, as `open_dataset`.
    """
    return open_dataset(
        config.csv,
        config.dicom_root,
        preprocessing,
        config.cache_dir or outputs / "cache",
        selection=config.selection(),
        naming=choose_naming(outputs, pseudonyms=config.pseudonyms),
        cache_mode=cache_mode,
        expected_hash=expected_hash,
        progress=stoppable(progress, stop),
        despite_broken=despite_broken,
    )
