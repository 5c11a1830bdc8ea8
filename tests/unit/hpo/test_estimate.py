"""What a study would cost: arithmetic over measured speeds, and speeds that are measured with the real loop."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from hpo.estimate import (
    Estimate,
    Kind,
    checkpoint_bytes,
    cost_tables,
    describe,
    epoch_seconds,
    forecast,
    trial_seconds,
)
from hpo.study_file import BudgetSection, StudyFile
from hpo.timing import Speed, measure
from tests.laboratory import Laboratory
from trainer.config import TrainConfig
from trainer.data.folds import Folds
from trainer.data.records import Dataset, ImageRecord
from trainer.errors import StopRequestedError
from trainer.model import build_network
from trainer.records import Resolution

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SPEED = Speed(train_s=0.5, validate_s=0.1, save_s=2.0, checkpoint_bytes=1_000)
TINY = {"arch": "test_efficientnet", "weights": "none", "img_size": 32, "batch_size": 8}


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    """Leave the process's threads and determinism as they were."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


@pytest.fixture
def folds() -> Folds:
    """Forty images in four folds of ten."""
    return Folds(np.arange(40) % 4, 4, tuple(f"{i}.dcm" for i in range(40)))


@pytest.fixture
def dataset() -> Dataset:
    """Forty images of noise, 32 px, in four classes of which the first is frequent."""
    generator = np.random.default_rng(0)
    records = tuple(ImageRecord(f"{i}.dcm", "", f"{i}", f"{i}", max(0, i % 8 - 4), None, None) for i in range(40))
    pixels = generator.integers(0, 256, (40, 32, 32), dtype=np.uint8)
    return Dataset(pixels, records, ("A", "B", "C", "D"), (), "noise")


def study(**sections: Any) -> StudyFile:
    """Return a study that searches over a rate and, where there are blocks to drop, over dropping them."""
    search = {
        "lr": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
        "freeze": {"type": "categorical", "choices": ["none", "backbone"]},
        "drop_path": {"type": "float", "low": 0.0, "high": 0.2, "when": {"freeze": "none"}},
    }
    content = {"study": "s", "train": TINY, "search": search, "budget": {"trials": 30}, **sections}
    return StudyFile.model_validate(content)


def shown(parts: list[Any]) -> str:
    """Return what a person sees."""
    console = Console(width=160)
    with console.capture() as capture:
        console.print(*parts, sep="\n", markup=False, highlight=False)
    return capture.get()


def test_an_epoch_trains_validates_and_saves(folds: Folds) -> None:
    """Thirty images are trained on and ten validated on in each fold."""
    assert epoch_seconds(SPEED, folds) == pytest.approx(30 * 0.5 + 10 * 0.1 + 2.0)


def test_twice_the_epochs_take_twice_the_time(folds: Folds) -> None:
    """And every fold has its epochs; where each is kept, so do the checkpoints."""
    once, twice = (TrainConfig(epochs=epochs) for epochs in (10, 20))
    assert trial_seconds(once, SPEED, folds) == pytest.approx(4 * 10 * epoch_seconds(SPEED, folds))
    assert trial_seconds(twice, SPEED, folds) == pytest.approx(2 * trial_seconds(once, SPEED, folds))
    assert checkpoint_bytes(once, SPEED, folds) == 4 * 2 * 1_000
    assert checkpoint_bytes(TrainConfig(epochs=10, save_every_epoch=True), SPEED, folds) == 4 * 12 * 1_000


@pytest.mark.parametrize(
    ("budget", "size", "workers", "trials", "hours"),
    [
        ({"trials": 10}, None, 1, 10, 5.0),
        ({"trials": 10}, None, 4, 10, 1.5),  # three rounds, the last of them with two workers idle
        ({"trials": 10}, 6, 1, 6, 3.0),
        ({"hours": 1.2}, None, 2, 6, 1.5),  # what has begun is finished
        ({"gpu_hours": 4}, None, 2, 8, 2.0),
        ({"deadline": NOW + timedelta(hours=2)}, None, 1, 4, 2.0),
        ({"trials": 10, "hours": 1}, None, 1, 2, 1.0),
        ({"plateau": 5}, None, 1, None, None),
    ],
)
def test_the_first_limit_ends_the_study(
    budget: dict[str, Any], size: int | None, workers: int, trials: int | None, hours: float | None
) -> None:
    """With half an hour a trial; GPU-hours are all workers' together, and none on the processor."""
    section = BudgetSection.model_validate(budget)
    found = forecast(section, size, 1800.0, workers, on_gpu=True, now=NOW)
    assert (found.trials, found.hours) == (trials, hours)
    assert found.gpu_hours == (None if trials is None else trials / 2)
    on_cpu = forecast(section, size, 1800.0, workers, on_gpu=False, now=NOW)
    assert on_cpu.gpu_hours in {0.0, None}


def test_the_whole_study_is_the_mean_over_its_configurations(folds: Folds) -> None:
    """Kinds that were not timed are left out, and said; the decoded images are kept once for each size."""
    configs = [TrainConfig(img_size=size, epochs=4) for size in (64, 128, 256)]
    speeds = {Kind.of(configs[0]): SPEED, Kind.of(configs[1]): Speed(1.5, 0.3, 6.0, 3_000)}
    resolution = Resolution(
        device_kind="cpu", threads=2, precision="float32", micro_batch=8, validation_batch=32, fused=False
    )
    file = study(train={**TINY, "img_size": 64})
    found = Estimate(file, folds, 40, resolution, configs, speeds, [Kind.of(configs[2])])
    assert found.trial_s == pytest.approx(2 * trial_seconds(configs[0], SPEED, folds))
    assert found.trial_bytes == pytest.approx(2 * checkpoint_bytes(configs[0], SPEED, folds))
    assert found.cache_bytes == 40 * (64**2 + 128**2 + 256**2)
    assert found.forecast(1).trials == 30
    text = shown(cost_tables(found))
    assert "left out of the mean: 1 configurations" in text
    assert "too large for this device: efficientnet_b0, 256 px" in text
    assert "nothing is pruned" in text


@pytest.mark.parametrize("side", [32, 48])
def test_a_speed_is_measured_with_the_real_loop(dataset: Dataset, side: int) -> None:
    """Also for another size than the data are decoded in; the checkpoint is a real one: weights and two moments of each."""
    config = TrainConfig.model_validate({**TINY, "img_size": side, "lr": 0.5, "class_weights": "auto", "epochs": 99})
    speed, resolution = measure(config, dataset, torch.device("cpu"), threading.Event(), limit_s=0.5)
    assert resolution.device_kind == "cpu"
    assert min(speed.train_s, speed.validate_s, speed.save_s) > 0
    assert speed.train_s < 1
    n_weights = sum(parameter.numel() for parameter in build_network(config, 4, seed=0).parameters())
    assert 12 * n_weights < speed.checkpoint_bytes < 18 * n_weights


def test_a_measurement_can_be_stopped(dataset: Dataset) -> None:
    """It asks between steps, as all training does."""
    stop = threading.Event()
    stop.set()
    with pytest.raises(StopRequestedError):
        measure(TrainConfig.model_validate(TINY), dataset, torch.device("cpu"), stop, limit_s=0.5)


def test_a_study_is_described_without_its_data() -> None:
    """Every dimension with its range and its condition, the size of the space, and ten configurations of it."""
    text = shown(describe(study()))
    assert "s: 30 trials, 5 folds a trial" in text
    assert "a number from 1e-05 to 0.01, logarithmic" in text
    assert "freeze = none" in text
    assert "configurations: no end to them; some of them:" in text
    assert text.count("backbone ") + text.count("none  ") >= 10
    finite = study(search={"batch_size": {"type": "categorical", "choices": [8, 16, 32]}})
    assert "configurations: 3; all of them:" in shown(describe(finite))


def test_a_dry_run_without_data_needs_no_database(tmp_path: Path) -> None:
    """The space is shown, and that its cost needs data is said; nothing is left behind."""
    laboratory = Laboratory(tmp_path, tmp_path, tmp_path / "outputs")
    content = study().model_dump(mode="json", include={"study", "search", "budget"})
    (tmp_path / "s.yaml").write_text(json.dumps(content))  # JSON is YAML
    out = laboratory.ok("study", "create", "s.yaml", "--dry-run")
    assert "a number from 1e-05 to 0.01, logarithmic" in out
    assert out.splitlines()[-1].endswith("does not say where its data are: give --csv")
    assert not laboratory.outputs.exists()
