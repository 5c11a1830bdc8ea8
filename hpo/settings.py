"""What the environment says. No other module reads it."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from storage.compose_stack import PRIVATE, find_stack

DATABASE_URL = "MAMMOGRAPHY_DATABASE_URL"
OUTPUTS = "MAMMOGRAPHY_OUTPUTS"
ARTIFACTS = "MAMMOGRAPHY_ARTIFACTS"
CUDA_DEVICES = "CUDA_VISIBLE_DEVICES"

DASHBOARD_PASSWORD = "MAMMOGRAPHY_DASHBOARD_PASSWORD"  # nosec # noqa: S105 - the variable's name
DASHBOARD_PASSWORD_FILE = "MAMMOGRAPHY_DASHBOARD_PASSWORD_FILE"  # nosec # noqa: S105 - the variable's name

_FOR_STEPS_ON_THE_CPU = {
    # On few cores, waiting threads that spin take the time of those that work: a 0.7 s step took 6.7 s.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
}


@dataclass(frozen=True)
class Settings:
    """
    Where the database, the output folder and the artifacts are, from flags first and the environment second.

    In the folder of the compose stack it is what the stack's containers use, as long as its database is meant.
    """

    database: str | None = field(repr=False)
    """A PostgreSQL URL; None for the private server."""
    outputs: Path
    artifacts: str
    """Where what the dashboard shows of finished trials is kept: a folder, or s3://BUCKET/PREFIX."""

    @classmethod
    def resolve(cls, *, database: str | None, outputs: Path | None, artifacts: str | None = None) -> Settings:
        """Return the settings: what is given, else what the environment says, else the stack's, else the defaults."""
        asked = asked_database(database)
        stack = None if asked else find_stack(Path.cwd(), os.environ)
        url = stack.database if stack else asked
        output_root = Path(outputs or os.environ.get(OUTPUTS) or (stack and stack.outputs) or "outputs").absolute()
        kept = artifacts or os.environ.get(ARTIFACTS) or (stack and stack.artifacts)
        return cls(
            database=None if url == PRIVATE else url,
            outputs=output_root,
            artifacts=kept or str(output_root / "artifacts"),
        )


def asked_database(flag: str | None) -> str | None:
    """Return what the flag, else the environment, says of the database; None where neither does."""
    return flag or os.environ.get(DATABASE_URL) or None


def allowed_gpus() -> list[str] | None:
    """Return the GPUs that this process may use, as a scheduler or a user says it; None where nobody does."""
    said = os.environ.get(CUDA_DEVICES)
    if said is None:
        return None
    devices = (device.strip() for device in said.split(","))
    # As CUDA reads it: up to the first that cannot be one, so that -1 or NoDevFiles mean none.
    return list(itertools.takewhile(lambda device: re.fullmatch(r"\d+|(GPU|MIG)-.+", device), devices))


def mps_pipes() -> Path:
    """Return where NVIDIA's Multi-Process Service is reached, if it runs: its clients find it by themselves."""
    return Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")) / "control"  # nosec # noqa: S108 - NVIDIA's default


def child_environment(settings: Settings, *, cuda_device: str | None, threads: int) -> dict[str, str]:
    """
    Return the environment of a worker process: ours, with its GPU and its share of the processor.

    These must be set before torch is loaded.
    """
    environment = {
        **os.environ,
        OUTPUTS: str(settings.outputs),
        ARTIFACTS: settings.artifacts,
        DATABASE_URL: settings.database or PRIVATE,  # said in any case: a worker does not choose again
        "OMP_NUM_THREADS": str(threads),
    }
    for name, value in _FOR_STEPS_ON_THE_CPU.items():
        environment.setdefault(name, value)
    if cuda_device is not None:
        environment[CUDA_DEVICES] = cuda_device
    return environment


@dataclass(frozen=True)
class SaidPassword:
    """The dashboard's password, as the environment says it."""

    file: Path | None
    """A file that holds it."""
    secret: str | None
    """The password itself."""

    def __repr__(self) -> str:
        return f"SaidPassword(file={self.file})"


def dashboard_password() -> SaidPassword:
    """Return the dashboard's password, and take it out of the environment: no process that we start inherits it."""
    file, secret = os.environ.get(DASHBOARD_PASSWORD_FILE), os.environ.pop(DASHBOARD_PASSWORD, None)
    return SaidPassword(Path(file) if file else None, secret or None)
