"""What decides the bits is settled and enforced; seeds follow from their parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from trainer.config import TrainConfig
from trainer.data.records import Dataset
from trainer.errors import InputError
from trainer.resolve import enforce, resolve, resolve_device
from trainer.seeds import Seeds, epoch_seed, step_seed

Make = Callable[..., TrainConfig]
CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("name", ["cuda", "cuda:3"])
def test_a_gpu_that_is_not_there_is_one_line(name: str) -> None:
    """The message names what was asked for."""
    with pytest.raises(InputError, match=f"{name} was asked for"):
        resolve_device(name)


def test_the_processor_is_always_there() -> None:
    """By name."""
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize(
    ("fields", "precision"),
    [
        ({}, "float32"),
        ({"amp": "on"}, "bfloat16"),
        ({"amp": "on", "amp_dtype": "float16"}, "float16"),
        ({"amp": "off", "amp_dtype": "float16"}, "float32"),
    ],
)
def test_precision_on_the_processor(config: Make, dataset: Dataset, fields: dict[str, str], precision: str) -> None:
    """Off unless asked for, and bfloat16 then."""
    assert resolve(config(**fields), dataset, CPU, threads=2).precision == precision


def test_a_batch_that_fits_goes_whole_and_a_smaller_one_may_be_asked_for(config: Make, dataset: Dataset) -> None:
    """What is asked for wins, and is never more than the batch."""
    assert resolve(config(), dataset, CPU, threads=1).micro_batch == 4
    assert resolve(config(), dataset, CPU, threads=1, micro_batch=2).micro_batch == 2
    assert resolve(config(), dataset, CPU, threads=1, micro_batch=9).micro_batch == 4


@pytest.mark.parametrize(
    ("batch_size", "micro_batch", "validation_batch"),
    [(16, None, 32), (64, None, 64), (64, 8, 32), (64, 3, 12), (2, None, 8)],
)
def test_images_validated_at_once_are_few_where_few_fit(
    config: Make, dataset: Dataset, batch_size: int, micro_batch: int | None, validation_batch: int
) -> None:
    """Four times as many as are trained on at once, at most."""
    settled = resolve(
        config(batch_size=batch_size, loader_heuristics=False), dataset, CPU, threads=1, micro_batch=micro_batch
    )
    assert settled.validation_batch == validation_batch


def test_all_threads_are_those_of_before_the_first_run(config: Make, dataset: Dataset) -> None:
    """A worker that took up a trial of one thread begins its next one with all again."""
    settled = resolve(config(), dataset, CPU, threads=None)
    enforce(settled.model_copy(update={"threads": settled.threads + 1}))
    assert resolve(config(), dataset, CPU, threads=None).threads == settled.threads


@pytest.mark.parametrize(
    ("fields", "fused"),
    [({}, False), ({"fused_optim": True}, True), ({"amp": "on", "amp_dtype": "float16"}, True)],
)
def test_the_optimiser_is_fused_where_it_is_asked_for_or_saves_a_wait(
    config: Make, dataset: Dataset, fields: dict[str, Any], *, fused: bool
) -> None:
    """float16 needs it, else its scaler waits for the device in every step."""
    assert resolve(config(**fields), dataset, CPU, threads=1).fused is fused


def test_the_resolution_is_enforced(config: Make, dataset: Dataset) -> None:
    """Threads and determinism of the process are what was settled."""
    enforce(resolve(config(), dataset, CPU, threads=1), deterministic=True)
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    enforce(resolve(config(), dataset, CPU, threads=2), deterministic=False)
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()


def test_seeds_differ_by_every_part_and_repeat() -> None:
    """Study, trial, fold, epoch and step each matter; 63 bits, the same in every process."""
    seeds = {Seeds(s, t).fold(f) for s in range(3) for t in range(3) for f in range(3)}
    assert len(seeds) == 27
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert Seeds(42, 7).fold(1) == 8887793671903963649
    assert len({epoch_seed(1, 0), epoch_seed(1, 1), step_seed(1, 0, 0), step_seed(1, 0, 1), step_seed(1, 1, 0)}) == 5
