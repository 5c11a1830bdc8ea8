"""The command line: wrong usage ends with 2 and one line that names the argument."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from hpo import cli
from hpo.commands.options import Everywhere
from hpo.commands.speech import exit_code
from hpo.errors import NoFinishedTrialError, QueuedValueError, StudyFileError
from hpo.importance import NoImportanceError
from storage.errors import (
    ConfigurationTakenError,
    DatabaseUnavailableError,
    LimitError,
    StudyInUseError,
    StudyNameError,
    TakenOverError,
    UnknownStudyError,
)
from trainer.cli import run_config, to_flags
from trainer.config import RunConfig
from trainer.errors import InputError, StopRequestedError


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
        (("study", "enqueue", "x"), "FIELD=VALUE"),
        (("study", "extend", "x", "--trials", "0"), "--trials"),
        (("study", "extend", "x", "--hours", "nan"), "--hours"),
        (("study", "extend", "x", "--gpu-hours", "-1"), "--gpu-hours"),
        (("study", "extend", "x", "--deadline", "soon"), "no moment"),
        (("study", "extend", "x", "--deadline", "2100-01-31T08:00"), "no zone"),
        (("study", "extend", "x", "--deadline", "2020-01-31T08:00Z"), "in the future"),
        (("study", "report"), "NAME"),
        (("study", "report", "x", "--out", "/nowhere/report.html"), "/nowhere is no folder"),
        (("study", "report", "x", "--out", "/"), "is a directory"),
        (("metrics",), "NAME"),
        (("metrics", "x", "--port", "70000"), "--port"),
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


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("postgresql://u:geheim@h:5432/d", "postgresql://u:***@h:5432/d"),
        ("--database=postgresql://u:geheim@h/d", "--database=postgresql://u:***@h/d"),
        ("postgresql://u:ge@he/im?@h/d", "postgresql://u:***@h/d"),
        ("postgresql://:geheim@h/d", "postgresql://:***@h/d"),
        ("postgresql://u:ge\nheim@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u@h/d?password=geheim", "postgresql://u@h/d?***"),
        ("postgresql://u:geheim@h/d?sslpassword=geheim&sslmode=require", "postgresql://u:***@h/d?***"),
        ("postgresql://u@h:5432/d", "postgresql://u@h:5432/d"),
        ("https://search.example.org:8443/density", "https://search.example.org:8443/density"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("lr=0.01", "lr=0.01"),
    ],
)
def test_what_others_see_of_an_argument(argument: str, shown: str) -> None:
    """Of a URL everything but passwords, and what may be one; of anything else all."""
    assert cli.without_passwords(argument) == shown


def test_settings_do_not_print_what_may_hold_a_password() -> None:
    """What ends up in a log or in a debugger's output when somebody prints the settings is not the database's URL."""
    url = "postgresql://u:geheim@h/d"
    given = Everywhere(database=url)
    assert given.settings().database == url
    for printed in (repr(given), repr(given.settings()), str(given)):
        assert "geheim" not in printed


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


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StudyFileError("x"), 2),
        (QueuedValueError("lr", 1, "expected less"), 2),
        (InputError("x"), 2),
        (StudyNameError("../x"), 2),
        (UnknownStudyError("x", []), 2),
        (ConfigurationTakenError(1), 2),
        (LimitError("x", "trials", "there is none"), 2),
        (StudyInUseError("x", 1), 2),
        (NoFinishedTrialError("x"), 1),
        (NoImportanceError("x"), 1),
        (TakenOverError(1), 1),
        (DatabaseUnavailableError("x"), 1),
        (FileNotFoundError("x"), 1),
        (StopRequestedError(), 130),
    ],
)
def test_exit_codes(error: Exception, code: int) -> None:
    """2 where the user can put it right on the command line or in a file, 130 for who asked to stop, else 1."""
    assert exit_code(error) == code


def commands(group: click.Group, *names: str) -> list[tuple[str, ...]]:
    """Return the names of all commands below *group*, and of the groups."""
    found = [names]
    for name, command in group.commands.items():
        below = (*names, name)
        found += commands(command, *below) if isinstance(command, click.Group) else [below]
    return found


def test_help_of_every_command_loads_nothing_heavy() -> None:
    """It answers at once, whatever the command is."""
    everything = commands(cli.mammography)
    assert ("study", "enqueue") in everything
    code = (
        f"import sys\nfrom hpo import cli\nfor names in {everything}: assert cli.run([*names, '--help']) == 0\n"
        "heavy = {'torch', 'optuna', 'pandas', 'sqlalchemy', 'rich', 'prometheus_client', 'waitress'}\n"
        "print('loaded:', *sorted(heavy & set(sys.modules)))"
    )
    project = Path(cli.__file__).parents[1]
    answered = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    assert answered.stdout.splitlines()[-1] == "loaded:"
    assert answered.stdout.count("Usage: ") == len(everything)
