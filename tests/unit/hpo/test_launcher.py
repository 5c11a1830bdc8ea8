"""The launcher's plan: one process per slot, each with its device and its share of the processor."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.launcher import Slot, plan, visible_gpus


@pytest.mark.parametrize(
    ("workers", "per_gpu", "gpus", "cores", "slots"),
    [
        (None, 1, [], 2, [Slot(0, None, 2)]),
        (None, 1, [], 8, [Slot(0, None, 4), Slot(1, None, 4)]),
        (2, 1, [], 2, [Slot(0, None, 1), Slot(1, None, 1)]),
        (4, 1, [], 2, [Slot(index, None, 1) for index in range(4)]),
        (None, 1, ["0", "1"], 16, [Slot(0, "0", 8), Slot(1, "1", 8)]),
        (None, 2, ["0", "1"], 16, [Slot(0, "0", 4, 2), Slot(1, "1", 4, 2), Slot(2, "0", 4, 2), Slot(3, "1", 4, 2)]),
        (3, 1, ["0", "1"], 12, [Slot(0, "0", 4, 2), Slot(1, "1", 4), Slot(2, "0", 4, 2)]),
        (1, 1, ["0", "1"], 16, [Slot(0, "0", 16)]),
    ],
)
def test_plan(workers: int | None, per_gpu: int, gpus: list[str], cores: int, slots: list[Slot]) -> None:
    """Workers are spread over the GPUs in turn; threads are shared evenly, at least one each."""
    assert plan(workers, per_gpu, gpus, cores) == slots


@pytest.mark.parametrize(
    ("allowed", "gpus"), [(None, ["0", "1", "2"]), (["2"], ["2"]), ([], []), (["GPU-7a"], ["GPU-7a"])]
)
def test_only_allowed_gpus_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: list[str] | None, gpus: list[str]
) -> None:
    """On a shared machine the driver lists every GPU, also those that a scheduler gave to somebody else."""
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert visible_gpus(allowed) == gpus


def test_machine_without_a_driver_has_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment allows."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus(["0"]) == []
