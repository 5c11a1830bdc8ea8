"""The pooled features of a frozen backbone, computed once for all images and written as a folder of embeddings."""

from __future__ import annotations

import hashlib
import logging
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.batches import batch_bounds
from trainer.cli import command_line
from trainer.config import EmbedConfig, LoadingConfig
from trainer.data.progress import Progress
from trainer.data.records import Dataset
from trainer.data.report import summary
from trainer.embeddings import (
    FEATURES,
    METADATA,
    EmbeddingRecord,
    Origin,
    check_free,
    find,
    sha256,
    to_metadata,
    to_npy,
    write,
)
from trainer.errors import InputError, OutOfMemoryError, StopRequestedError
from trainer.loading import settle_loading
from trainer.loop import Forward, predict
from trainer.model import Network, build_network, head_names
from trainer.opening import open_archive
from trainer.precision import build_precision
from trainer.protocols import StopSignal
from trainer.provenance import commit, versions
from trainer.records import Resolution
from trainer.resolve import device_kind, enforce, resolve_device
from trainer.run_record import alone_in
from trainer.streaming import open_source

logger = logging.getLogger(__name__)

_SEED = 0  # of a backbone without weights
_N_CLASSES = 1  # of a head that nobody asks


def embed(
    config: EmbedConfig, outputs: Path, *, stop: StopSignal | None = None, progress: Progress | None = None
) -> tuple[EmbeddingRecord, bool]:
    """
    Write the pooled features of all images; return their record, and whether they were computed now.

    Those that are there already are not computed again. What an interruption left without its record is completed.

    Args:
        config: Which backbone, of what, and where to.
        outputs: The output folder, for what *config* leaves open.
        stop: Whether somebody asked to stop.
        progress: Told of images done and all images while they are decoded.

    Raises:
        InputError: Wrong input, or a folder that holds other files in their place.
        DataError: The data cannot be used.
        OutOfMemoryError: The device has too little memory for a batch.
        StopRequestedError: Asked to stop; nothing was written.
    """
    started_at = datetime.now(UTC)
    if config.outdir.exists() and not config.outdir.is_dir():
        raise InputError(f"{config.outdir}: is a file, expected a folder")
    device = resolve_device(config.device)
    resolution = _resolution(config, device)
    enforce(resolution)
    network = build_network(config.train_config(), _N_CLASSES, _SEED).eval()  # before hours of decoding, not after
    dataset = open_archive(config, config.preprocessing(), outputs, stop=stop, progress=progress)
    logger.info("%s", summary(dataset), extra={"action": "data_opened"})
    origin = _origin(config, network, dataset)
    config.outdir.mkdir(parents=True, exist_ok=True)
    with alone_in(config.outdir):
        found = find(config.outdir, origin)
        if found is not None:
            logger.info("%s: holds these features already", config.outdir, extra={"action": "embeddings_found"})
            return found, False
        metadata = to_metadata(dataset.records, None if config.pseudonyms else config.dicom_root)
        check_free(config.outdir / METADATA, metadata)
        vectors = _compute(network.to(device), dataset, device, config.batch_size, stop or threading.Event())
        features = to_npy(vectors)
        check_free(config.outdir / FEATURES, features)
        record = EmbeddingRecord(
            **_provenance(config, resolution, started_at),
            origin=origin,
            n_images=vectors.shape[0],
            n_features=vectors.shape[1],
            features_sha256=sha256(features),
            metadata_sha256=sha256(metadata),
            rejected=dataset.rejected(),
        )
        write(config.outdir, features, metadata, record)
    return record, True


def _provenance(config: EmbedConfig, resolution: Resolution, started_at: datetime) -> dict[str, Any]:
    """Return the fields of a record that say how its vectors came about; the command is for this kind of device."""
    settled = config.model_copy(update={"threads": resolution.threads})
    return {
        **commit().model_dump(),
        "weights": config.weights,
        "resolution": resolution,
        "versions": versions(),
        "command": command_line("embed", settled),
        "started_at": started_at,
        "finished_at": datetime.now(UTC),
    }


def _resolution(config: EmbedConfig, device: torch.device) -> Resolution:
    """Return what decides the bits of the vectors: float32 everywhere, so that no card decides more than the last of them."""
    return Resolution(
        device_kind=device_kind(device),
        threads=config.threads or torch.get_num_threads(),
        precision="float32",
        micro_batch=config.batch_size,
        validation_batch=config.batch_size,
        fused=False,
    )


def _origin(config: EmbedConfig, network: Network, dataset: Dataset) -> Origin:
    """Return what the vectors of *dataset* by *network*, on the processor, are of."""
    head = head_names(network.model)
    digest = hashlib.sha256()
    for name, tensor in sorted(network.model.state_dict().items()):
        if name not in head:
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return Origin(
        arch=config.arch,
        backbone_sha256=digest.hexdigest(),
        preprocessing=config.preprocessing(),
        data_hash=dataset.data_hash,
    )


def _compute(
    network: Network, dataset: Dataset, device: torch.device, batch_size: int, stop: StopSignal
) -> NDArray[np.float32]:
    """Return (N, D) pooled features of *dataset* by *network*, which is on *device* and in ``eval()``."""
    n_images = len(dataset.records)
    logger.info("computing the features of %d images", n_images, extra={"action": "embedding"})
    forward, order = _told(network, n_images), np.arange(n_images)
    precision = build_precision("float32", device, clip_norm=0)
    loading = settle_loading(LoadingConfig(), dataset, device, len(batch_bounds(n_images, batch_size)))
    # Convolutions would use TensorFloat-32 where a card has it, with ten bits of mantissa.
    exact = torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False)
    try:
        with exact, open_source(dataset, device, loading) as source:
            vectors = predict(forward, source, order, batch_size, precision, stop)
    except StopRequestedError as error:
        raise StopRequestedError("asked to stop; no features were written") from error
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(f"{str(error).partition('.')[0]} (batch_size {batch_size})") from error
    if vectors.ndim != 2 or not np.isfinite(vectors).all():  # noqa: PLR2004 - images and features
        raise InputError(
            f"weights: features of shape {vectors.shape}, expected finite (N, D); use others, or another arch"
        )
    return vectors


def _told(network: Network, n_images: int) -> Forward:
    """Return the pooled features of *network* as a forward pass that logs every tenth of *n_images*."""
    done = 0

    def forward(images: Tensor, _: Tensor | None) -> Tensor:
        nonlocal done
        before, done = done, done + len(images)
        if 10 * done // n_images > 10 * before // n_images:
            logger.info("%d of %d images", done, n_images, extra={"action": "embedding"})
        return network.embed(images)

    return forward
