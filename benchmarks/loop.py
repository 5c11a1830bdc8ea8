"""
Images per second of the real training loop and of the bare step, measured in turns in one process, and their ratio.

The real loop is `trainer.loop.train_epoch`: batches cut from the decoded array, augmentation, normalisation, the step with
clipping, losses and hits. The bare step is forward, loss, backward and optimiser on one synthetic tensor that is there
already, with the same network, batch size and precision. The rest of a fold (validation, checkpoints, files) is in neither.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trainer.batches import images_on
from trainer.config import TrainConfig
from trainer.data.records import Dataset, ImageRecord
from trainer.loop import Learner, train_epoch
from trainer.losses import build_loss
from trainer.model import build_network
from trainer.optim import build_optimizer
from trainer.precision import build_precision
from trainer.records import Resolution
from trainer.resolve import enforce, resolve, resolve_device

CLASSES = ("A", "B", "C", "D")
SEED = 0


def main() -> None:
    """Measure and print a table."""
    asked = parse()
    device = resolve_device(asked.device)
    config = TrainConfig(
        arch=asked.arch, weights="none", img_size=asked.img_size, batch_size=asked.batch_size, train_augment=True
    )
    images = synthetic_images(config)
    resolution = resolve(config, images, device, threads=asked.threads)
    enforce(resolution, deterministic=config.deterministic)
    real, bare = (build_learner(config, images, device, resolution) for _ in range(2))
    run_real, run_bare = real_round(real, config, asked.steps), bare_round(bare, config, asked.steps)
    for warm_up in (run_real, run_bare):
        warm_up()
    n_images = asked.steps * asked.batch_size
    rates = [(n_images / timed(run_real, device), n_images / timed(run_bare, device)) for _ in range(asked.rounds)]
    print(
        f"{asked.arch} {asked.img_size} px, batch {asked.batch_size}, {resolution.precision}, {resolution.device_kind}"
    )
    print(f"{asked.rounds} rounds of {asked.steps} steps, {resolution.threads} threads\n")
    print("round   real loop   bare step   ratio    (images/s)")
    for number, (first, second) in enumerate(rates):
        print(f"{number:5d} {first:11.2f} {second:11.2f} {first / second:7.3f}")
    medians = [statistics.median(column) for column in zip(*rates, strict=True)]
    ratio = statistics.median(first / second for first, second in rates)
    print(f"{'median':>6}{medians[0]:11.2f} {medians[1]:11.2f} {ratio:7.3f}")


def parse() -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="tf_efficientnet_lite0")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5, help="steps a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def synthetic_images(config: TrainConfig) -> Dataset:
    """Return 64 images of noise, or two batches of them."""
    n_images = max(64, 2 * config.batch_size)
    generator = np.random.default_rng(SEED)
    pixels = generator.integers(0, 256, (n_images, config.img_size, config.img_size), dtype=np.uint8)
    records = tuple(
        ImageRecord(f"{i}.dcm", "", f"{i}", f"{i}", int(label), None, None)
        for i, label in enumerate(generator.integers(0, len(CLASSES), n_images))
    )
    return Dataset(pixels, records, CLASSES, (), "noise")


def build_learner(config: TrainConfig, dataset: Dataset, device: torch.device, resolution: Resolution) -> Learner:
    """Return all that a step needs."""
    network = build_network(config, len(CLASSES), SEED).to(device)
    return Learner(
        network=network,
        optimizer=build_optimizer(config, network, fused=resolution.fused),
        loss=build_loss(config, len(CLASSES), None).to(device),
        precision=build_precision(resolution.precision, device, config.grad_clip),
        source=images_on(dataset, device),
        micro_batch=resolution.micro_batch,
    )


def real_round(learner: Learner, config: TrainConfig, steps: int) -> Callable[[], object]:
    """Return what runs *steps* steps of the real loop."""
    order = np.resize(np.arange(max(64, 2 * config.batch_size)), steps * config.batch_size)
    return lambda: train_epoch(learner, order, config, (SEED, 0), threading.Event())


def bare_round(learner: Learner, config: TrainConfig, steps: int) -> Callable[[], object]:
    """Return what runs *steps* bare steps on one normalised (B, 3, H, W) tensor."""
    device = next(learner.network.parameters()).device
    shape = (config.batch_size, 3, config.img_size, config.img_size)
    images = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(config.batch_size, device=device) % len(CLASSES)

    def run() -> None:
        learner.network.train()
        for _ in range(steps):
            bare_step(learner, images, labels)

    return run


def bare_step(learner: Learner, images: Tensor, labels: Tensor) -> None:
    """Update the network once: no data, no augmentation, no clipping, no metrics."""
    with learner.precision.autocast():
        logits = learner.network.model(images)
    loss = functional.cross_entropy(logits.float(), labels)
    learner.optimizer.zero_grad(set_to_none=True)
    learner.precision.scaler.scale(loss).backward()
    learner.precision.scaler.step(learner.optimizer)
    learner.precision.scaler.update()


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that *run* takes, until the device is done."""
    synchronise(device)
    started = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    """Wait for *device*."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
