"""The command line: wrong usage ends with 2 and one line that names the argument."""

from __future__ import annotations

import pytest

from hpo import cli
from trainer.cli import run_config, to_flags
from trainer.config import RunConfig


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--database", "mysql://u:geheim@h/d", "study", "list"), "PostgreSQL"),
        (("study", "list", "--database", "no url at all"), "postgresql://"),
        (("study", "lisst"), "lisst"),
        (("demo", "--patients", "17"), "--patients"),  # too few for every grade in each of three folds
        ((), "Missing command"),
        (("study",), "Missing command"),
        (("--outputs", __file__, "study", "list"), "is a file"),
        (("study", "--outputs", __file__, "list"), "is a file"),
        (("study", "list", "--outputs", __file__), "is a file"),
        (("launch",), "NAME"),
        (("launch", "x", "--workers", "none"), "--workers"),
        (("launch", "x", "--workers", "²"), "--workers"),
        (("worker", "x", "--device", "gpu"), "--device"),
        (("train-density", "--csv", "nowhere.csv", "--dicom-root", "nowhere"), "nowhere"),
        (("train-density", "--csv", "c", "--dicom-root", "d", "--lr", "fast"), "--lr"),
        (("train-density", "--csv", "c", "--dicom-root", "d", "--epochs", "0"), "--epochs"),
        (("train-density", "--csv", "c", "--dicom-root", "d", "--epoch", "3"), "--epochs"),
        (("train-density", "--csv", "c"), "--dicom-root"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], complaint: str) -> None:
    """The one line names the argument; a password never shows."""
    assert cli.run(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert complaint in err
    assert "geheim" not in err


def test_every_run_can_be_written_as_flags() -> None:
    """The flags of a configuration, read again, are that configuration: also where they are unusual."""
    config = RunConfig(
        csv="labels.csv", dicom_root="archive", lr=1 / 3, class_weights=(1.0, 2.5), deterministic=False, train_augment=True,
        cv_folds=3, weight_decay=0.0, threads=2, seed=7, trial=12,
    )  # fmt: skip
    command = cli.mammography.get_command(None, "train-density")  # type: ignore[arg-type]
    assert command is not None
    given = command.make_context("train-density", to_flags(config)).params
    assert run_config(given) == config
