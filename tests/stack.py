"""The compose stack as a user has it: a fresh clone of the project, the lines of the README, a real engine."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import PROJECT

DOCKER = shutil.which("docker") or "docker"
GIT = shutil.which("git") or "git"


def engine_answers() -> bool:
    """Return whether there is a Docker engine that we may use."""
    if shutil.which(DOCKER) is None:
        return False
    return subprocess.run([DOCKER, "info"], check=False, capture_output=True).returncode == 0


def compose_command() -> list[str]:
    """Return Compose v2 where the engine's client has it, else docker-compose."""
    plugin = subprocess.run([DOCKER, "compose", "version"], check=False, capture_output=True)
    return [DOCKER, "compose"] if plugin.returncode == 0 else ["docker-compose"]


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def docker(*arguments: str) -> str:
    """Run docker and return what it prints, errors too: container logs come on both."""
    command = [DOCKER, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout


@dataclass
class Stack:
    """A clone of the project that belongs to one user, and the containers that compose makes of it."""

    folder: Path
    project: str
    """What compose calls it; the names of containers and volumes begin with it."""
    owner: tuple[int, int]
    """User and group of the clone."""
    commit: str

    @classmethod
    def clone(cls, folder: Path, project: str, owner: tuple[int, int], settings: dict[str, object]) -> Stack:
        """Return a stack in a fresh clone of what is committed, with *settings* in its `.env`."""
        subprocess.run([GIT, "clone", "--quiet", str(PROJECT), str(folder)], check=True)
        commit = subprocess.run(
            [GIT, "-C", str(folder), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
        )
        lines = [f"{name}={value}\n" for name, value in settings.items()]
        (folder / ".env").write_text("".join(lines), encoding="utf-8")
        made = cls(folder, project, owner, commit.stdout.strip())
        made.give(folder)
        made.down()  # what a killed test left under this name
        made.forget_images()
        return made

    def forget_images(self) -> None:
        """Untag the images of an earlier run, for `up` builds only what is not there. Layers stay, for the build to find."""
        ours = [f"--filter=reference={self.project}{between}*" for between in "_-"]
        if names := docker("images", "--format={{.Repository}}:{{.Tag}}", *ours).split():
            docker("rmi", "--no-prune", *names)

    def commit_anew(self) -> str:
        """Make a commit in the clone, as `git pull` brings one, and return it."""
        git = (
            GIT,
            "-C",
            str(self.folder),
            "-c",
            "safe.directory=*",
            "-c",
            "user.name=test",
            "-c",
            "user.email=test@test",
        )
        subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "another"], check=True)
        self.give(self.folder / ".git")
        return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()

    def give(self, *paths: Path) -> None:
        """Make the owner of the clone the owner of *paths* and of what is below them: a test that root runs made them."""
        for path in paths:
            for each in (path, *path.rglob("*")):
                os.chown(each, *self.owner, follow_symlinks=False)

    def run(self, *arguments: str, timeout_s: float = 1500, **settings: object) -> subprocess.CompletedProcess[str]:
        """Run compose in the clone, with *settings* over those of `.env`."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("MAMMOGRAPHY_", "COMPOSE_"))}
        return subprocess.run(
            [*compose_command(), "--project-name", self.project, *arguments],
            cwd=self.folder,
            env={**ours, "PWD": str(self.folder), **{name: str(value) for name, value in settings.items()}},
            check=False,
            timeout=timeout_s,
            capture_output=True,
            text=True,
        )

    def ok(self, *arguments: str, timeout_s: float = 1500, **settings: object) -> str:
        """Run compose, which must succeed, and return what it printed."""
        done = self.run(*arguments, timeout_s=timeout_s, **settings)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def containers(self, service: str | None = None) -> list[str]:
        """Return the ids of the containers of *service*, or of all, also of those that ended."""
        of_service = () if service is None else ("--filter", f"label=com.docker.compose.service={service}")
        return docker(
            "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={self.project}", *of_service
        ).split()

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine knows of the one container of *service*."""
        found: list[dict[str, Any]] = json.loads(docker("inspect", *self.containers(service)))
        assert len(found) == 1
        return found[0]

    def up(self) -> None:
        """Start what starts without being asked for, and wait until it is healthy."""
        self.ok("up", "--detach")
        self.wait(lambda: self.healthy("db") and self.healthy("dashboard"))

    def healthy(self, service: str) -> bool:
        """Return whether the health check of *service* passes."""
        return bool(self.inspect(service)["State"]["Health"]["Status"] == "healthy")

    def wait(self, condition: Callable[[], Any], timeout_s: float = 240) -> None:
        """Wait until *condition* () is true; where it does not become so, show what the containers said."""
        until = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < until, "\n".join(docker("logs", "--tail=40", each) for each in self.containers())
            time.sleep(0.5)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `mammography` on the host, in the clone: nothing says which database."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("MAMMOGRAPHY_")}
        command = [sys.executable, "-m", "hpo.cli", *arguments]
        return subprocess.run(command, cwd=self.folder, env=ours, check=False, capture_output=True, text=True)

    def status(self, study: str = "small") -> dict[str, Any]:
        """Return what `study status --json` says on the host."""
        done = self.command("study", "status", study, "--json")
        assert done.returncode == 0, done.stderr
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def secret(self, name: str) -> str:
        """Return a password that the first run made."""
        return (self.folder / "secrets" / name).read_text(encoding="utf-8").strip()

    def down(self) -> None:
        """Take everything down, the data too. Images stay: the next build finds their layers."""
        self.ok("--profile", "worker", "--profile", "study", "down", "--volumes", "--remove-orphans")

    def remove(self) -> None:
        """Take everything down, and remove the clone."""
        try:
            self.down()
        finally:
            shutil.rmtree(self.folder)
