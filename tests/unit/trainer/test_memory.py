"""How much fits is measured, and what follows from it is a rule."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trainer import memory
from trainer.batches import batch_bounds
from trainer.config import TrainConfig
from trainer.memory import (
    Footprint,
    Probe,
    choose_batch_size,
    even_parts,
    fitting_power,
    free_bytes,
    measure,
    settle_micro_batch,
)
from trainer.model import build_network

Make = Callable[..., TrainConfig]
CPU = torch.device("cpu")
PEAK = """
import json, re, torch
from pathlib import Path
from trainer import memory
from trainer.config import TrainConfig
torch.set_num_threads(1)
config = TrainConfig(arch="tf_efficientnet_lite0", weights="none", img_size=160)
footprint = memory.measure(config, 4, torch.device("cpu"), "float32")

def resident(name):  # of this process; getrusage's peak begins with that of the one which started it
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = resident("VmRSS")
memory.Probe(memory.build_network(config, 4, 0).train(), config, "float32", torch.device("cpu")).step(24)
print(json.dumps([footprint.fixed_bytes + 24 * footprint.image_bytes, resident("VmHWM") - before]))
"""


def test_the_estimate_is_near_what_a_process_really_takes() -> None:
    """One step on 24 images in a fresh process: its resident memory grew by no more than was foretold, and not by much less."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    foretold, grown = json.loads(done.stdout)
    assert 0.6 * foretold < grown < 1.1 * foretold


def test_a_footprint_grows_with_the_image_and_shrinks_with_a_frozen_backbone(config: Make) -> None:
    """Four times the pixels, about four times the bytes an image; a frozen backbone keeps nothing for its gradients."""
    small, large, frozen = (
        measure(made, 4, CPU, "float32")
        for made in (config(img_size=64), config(img_size=128), config(img_size=128, freeze="backbone"))
    )
    assert 3 < large.image_bytes / small.image_bytes < 5
    assert large.fixed_bytes == small.fixed_bytes > frozen.fixed_bytes
    assert frozen.image_bytes < large.image_bytes / 2


def test_measuring_changes_no_later_number(config: Make) -> None:
    """What does not decide the memory is not measured again, and two measurements are equal."""
    first = measure(config(lr=1e-3), 4, CPU, "float32")
    assert measure(config(lr=1e-4, dropout=0.3), 4, CPU, "float32") is first


@pytest.mark.parametrize(
    ("batch_size", "largest", "size"),
    [(16, 16, 16), (16, 40, 16), (16, 15, 8), (16, 7, 6), (16, 3, 3), (30, 16, 15), (5, 2, 2), (2, 2, 2)],
)
def test_a_batch_is_split_into_the_fewest_even_parts(batch_size: int, largest: int, size: int) -> None:
    """None larger than what fits, but for one image more in the last."""
    size_found = even_parts(batch_size, largest)
    assert size_found == size
    assert all(end - begin <= largest + 1 for begin, end in batch_bounds(batch_size, size_found))


@pytest.mark.parametrize(
    ("largest", "n_train", "device_type", "chosen"),
    [
        (1000, 10_000, "cpu", 16),
        (1000, 10_000, "cuda", 64),
        (1000, 700, "cuda", 32),
        (1000, 50, "cuda", 16),
        (11, 10_000, "cuda", 8),
        (3, 10_000, "cpu", 2),
    ],
)
def test_the_chosen_batch_is_a_power_of_two_that_fits(
    largest: int, n_train: int, device_type: str, chosen: int
) -> None:
    """Larger than 16 only on a GPU and where an epoch keeps twenty steps."""
    assert fitting_power(largest, n_train, device_type) == chosen


def test_a_fifth_of_the_free_memory_is_left() -> None:
    """And two images are tried however little there seems to be."""
    assert Footprint(fixed_bytes=100, image_bytes=10).largest(1000) == 70
    assert Footprint(fixed_bytes=100, image_bytes=10).largest(50) == 2


def test_what_is_kept_once_is_no_images(config: Make) -> None:
    """Weights in a smaller type are kept for the backward pass too, whatever the batch: an image in half the bytes takes half."""
    full, half = (measure(config(img_size=128), 4, CPU, dtype) for dtype in ("float32", "bfloat16"))
    assert 0.4 < half.image_bytes / full.image_bytes < 0.8
    assert half.fixed_bytes == full.fixed_bytes


def test_where_four_images_do_not_fit_two_are_tried(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second measurement may fail for want of memory; the first may not."""

    class Small(nn.Module):
        """A network on a device that has no room for more images than *most*."""

        most = 2

        def forward(self, images: Tensor, features: Tensor | None = None) -> Tensor:
            if len(images) > self.most:
                raise torch.OutOfMemoryError("no room. Really")
            return network(images, features)

    made = config(img_size=64)
    network = build_network(made, 4, 0).train()
    probe = Probe(network, made, "float32", CPU)
    exact = probe.kept_per_image()
    monkeypatch.setattr(Probe, "_forward", lambda _, n: Small()(torch.zeros(n, 1, 64, 64, dtype=torch.uint8)))
    assert exact <= probe.kept_per_image() < 2 * exact
    monkeypatch.setattr(Small, "most", 1)
    with pytest.raises(torch.OutOfMemoryError):
        probe.kept_per_image()


def test_little_memory_means_small_batches(config: Make, caplog: pytest.LogCaptureFixture) -> None:
    """With room for eleven images a run without a batch size gets 8, and one that asks for 16 gets parts of 8."""
    made = config(batch_size=16)
    footprint = measure(made, 4, CPU, "float32")
    room = int((footprint.fixed_bytes + 11.5 * footprint.image_bytes) / 0.8)
    assert choose_batch_size(made, 1000, 4, CPU, "float32", room) == 8
    assert settle_micro_batch(made, 4, CPU, "float32", room) == 8
    assert "a batch of 16 images does not fit" in caplog.text


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    """What a container may use is less than what its machine has free; what it has read from files lately is no use of it."""
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 300\nfile 600\ninactive_file 500\nactive_file 100\n")
    assert memory._container_bytes(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._container_bytes(tmp_path) > 2**60
    assert memory._container_bytes(tmp_path / "none") > 2**60
    assert 0 < free_bytes(CPU) < 2**60
