"""
What the service `setup` does before the others start: passwords and folders, made once and never again.

The project's folder is mounted at /project, and whoever owns it owns what is made here. So the services have to run as that
user; where they do not, one line says what to write into `.env`. Standard library only: the image holds nothing else.

    first_run.py ON_HOST [FOLDER ...]     where the project's folder is on the host, as far as compose knows; folders to make
                                          if they are not there: those outside the project are left to the user
"""  # noqa: INP001 - a script in an image, no package

from __future__ import annotations

import fcntl
import os
import secrets
import sys
from pathlib import Path

PROJECT = Path("/project")
USER = "mammography"


class RefusedError(Exception):
    """Something that only the user can put right, in one line."""


def main(project: Path, on_host: str, folders: list[str]) -> None:
    """
    Make the passwords below *project* and those *folders* that are in it, whatever of them is not there yet.

    Raises:
        RefusedError: Another user owns the project's folder or its passwords, or a folder is none that compose would mount.
    """
    _check_owner(project)
    for folder in folders:
        if not folder.startswith((".", "/")):  # compose alone knows whose home ~ is, and takes a mere name for a volume
            raise RefusedError(f"the folder {folder} in .env has to begin with ./ or with /")
    kept = project / "secrets"
    kept.mkdir(mode=0o700, exist_ok=True)
    _check_owned_alike(kept, project)
    kept.chmod(0o700)
    # Of two stacks that start at once the second waits, and finds what the first made; a killed one lets go.
    lock = os.open(kept, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    password = _keep(kept / "database-password", secrets.token_urlsafe(32), project)
    _keep(kept / "database.pgpass", f"*:*:*:{USER}:{_escaped(password)}", project)
    _keep(kept / "dashboard-password", secrets.token_urlsafe(16), project)
    os.close(lock)
    for folder in folders:
        path = os.path.relpath(folder, on_host or project) if folder.startswith("/") else os.path.normpath(folder)
        if ".." not in Path(path).parts:
            (project / path).mkdir(parents=True, exist_ok=True)


def _check_owner(project: Path) -> None:
    owner, runs_as = project.stat(), os.getuid()
    if owner.st_uid != runs_as:
        raise RefusedError(
            f"this folder belongs to user {owner.st_uid} and the stack runs as user {runs_as}: "
            f"write the line HOST_USER={owner.st_uid}:{owner.st_gid} into the file .env, then start it again"
        )


def _check_owned_alike(path: Path, project: Path) -> None:
    owner, right = path.stat(), project.stat()
    if owner.st_uid != right.st_uid:
        raise RefusedError(
            f"{path.relative_to(project)} belongs to user {owner.st_uid} and not to {right.st_uid}, who owns the project's "
            f"folder: sudo chown -R {right.st_uid}:{right.st_gid} {path.relative_to(project)}"
        )


def _keep(path: Path, content: str, project: Path) -> str:
    """
    Return the line in the file at *path*, which is made with *content*, for its owner alone, if it is not there.

    It appears with its content or not at all, so that a kill in between leaves no empty password.
    """
    if path.exists():
        _check_owned_alike(path, project)
        path.chmod(0o600)
    else:
        new = path.with_name(f".{path.name}.new")
        new.unlink(missing_ok=True)  # of a run that was killed
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(f"{content}\n")
            stream.flush()
            os.fsync(stream.fileno())
        new.rename(path)
    found = path.read_text(encoding="utf-8").rstrip("\r\n")
    if not found:
        raise RefusedError(f"{path.relative_to(project)} is empty: remove it, and a password is made")
    return found


def _escaped(password: str) -> str:
    """Return a password of the user's own choice as a line of libpq's passfile wants it."""
    return password.replace("\\", "\\\\").replace(":", "\\:")


if __name__ == "__main__":
    try:
        main(PROJECT, sys.argv[1], sys.argv[2:])
    except (RefusedError, OSError) as error:
        sys.exit(f"setup: {error}")
