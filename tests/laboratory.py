"""A laboratory for acceptance tests: real processes, started as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from storage.private_server import PrivateServer
from tests.conftest import remove_server

STUDY = """\
study: small
cv: {folds: 3}
train: {arch: test_efficientnet, weights: none, img_size: 32, epochs: 2, batch_size: 8}
search:
  lr: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
  weight_decay: {type: float, low: 0.0, high: 0.1}
  class_weights: {type: categorical, choices: [none, auto]}
budget: {trials: 4}
"""


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    code: int
    out: str
    err: str


@dataclass
class Laboratory:
    """A folder with an archive, an output folder, and the command `mammography`."""

    folder: Path
    archive: Path
    outputs: Path
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """Return the environment of a command: two threads fewer fights over two cores."""
        keep = {name: value for name, value in os.environ.items() if not name.startswith("MAMMOGRAPHY_")}
        return {**keep, "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "MAMMOGRAPHY_OUTPUTS": str(self.outputs)}

    def start(self, *arguments: object, preexec: Callable[[], None] | None = None) -> subprocess.Popen[str]:
        """Start the command, after *preexec* in its process."""
        process = subprocess.Popen(
            [sys.executable, "-m", "hpo.cli", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=preexec,  # noqa: PLW1509 - one system call
        )
        self._started.append(process)
        return process

    def run(self, *arguments: object, timeout_s: float = 280) -> Finished:
        """Run the command to its end."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=timeout_s)
        return Finished(process.returncode, out, err)

    def ok(self, *arguments: object, timeout_s: float = 280) -> str:
        """Run a command that must succeed, and return what it printed."""
        finished = self.run(*arguments, timeout_s=timeout_s)
        assert finished.code == 0, finished.err
        return finished.out

    def study(self, text: str = STUDY) -> None:
        """Create the study in *text* on the archive."""
        (self.folder / "study.yaml").write_text(text, encoding="utf-8")
        self.ok("study", "create", "study.yaml", *self.data)

    @property
    def data(self) -> tuple[str, ...]:
        """The flags that say where the data are."""
        return "--csv", str(self.archive / "classificacao.csv"), "--dicom-root", str(self.archive / "archive")

    def status(self, name: str = "small") -> dict[str, Any]:
        """Return what `study status --json` says."""
        status: dict[str, Any] = json.loads(self.ok("study", "status", name, "--json"))
        return status

    def record(self, number: int, name: str = "small") -> dict[str, Any]:
        """Return a trial's `optuna_trial.json`."""
        path = self.outputs / name / f"trial_{number:04d}" / "optuna_trial.json"
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record

    def close(self) -> None:
        """End every process that still runs, and the private server."""
        for process in self._started:
            if process.poll() is None:
                children = psutil.Process(process.pid).children(recursive=True)  # a killed launcher's workers live on
                for each in (process, *children):
                    each.kill()
                process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        remove_server(PrivateServer(self.outputs))
