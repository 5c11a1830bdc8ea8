"""Where the dashboard's password comes from: a file, the environment, or chance."""

from __future__ import annotations

import os
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hpo.errors import SearchError

_LONGEST = 1024  # bytes of a password


class PasswordFileError(SearchError):
    """A file that holds no password, or that cannot be read; the message names it and never shows what is in it."""


@dataclass(frozen=True)
class Password:
    """The password, and where a person finds it."""

    secret: str
    """In no log, no list of processes and no message."""
    file: Path | None
    """None where the environment said it."""
    warning: str | None = None
    """Who else could read it."""

    def __repr__(self) -> str:
        return f"Password(file={self.file})"


def choose_password(file: Path | None, secret: str | None, kept: Path) -> Password:
    """
    Return the password in *file*, else *secret*, else the random one that is kept at *kept*.

    A random one is made once, in a file of its owner's alone, and is the same at the next start: browsers remember it, and
    whoever restarts the dashboard has nothing to tell anybody. Removing the file makes a new one. Where nothing can be written
    at *kept* (an output tree that is mounted read-only) it is left in a file of the system's temporary folder.

    Raises:
        PasswordFileError: The file cannot be read, is empty, or holds more than one line.
    """
    if file is not None:
        return _read(file)
    if secret is not None:
        return Password(secret, None)
    try:
        return _keep(kept)
    except OSError:
        return _leave()


def _keep(path: Path) -> Password:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if not os.access(path, os.R_OK):  # another user's: a container that only looks on
            raise
        return _read(path)
    return _write(descriptor, path)


def _leave() -> Password:
    descriptor, name = tempfile.mkstemp(prefix="mammography-dashboard-password-")  # of mode 600
    return _write(descriptor, Path(name))


def _write(descriptor: int, path: Path) -> Password:
    secret = secrets.token_urlsafe(16)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(f"{secret}\n")
    return Password(secret, path)


def _read(path: Path) -> Password:
    try:
        with path.open("rb") as stream:
            content = stream.read(_LONGEST + 1)
            mode = os.fstat(stream.fileno()).st_mode
    except OSError as error:
        raise PasswordFileError(f"{path}: the dashboard's password cannot be read: {error.strerror}") from error
    try:
        secret = content.decode().strip("\r\n")
    except UnicodeDecodeError:
        # `from None`: the error would carry the content along
        raise PasswordFileError(f"{path}: the dashboard's password is no text in UTF-8") from None
    if not secret.strip():
        raise PasswordFileError(f"{path}: no password is in it")
    if "\n" in secret or len(content) > _LONGEST:
        raise PasswordFileError(f"{path}: one line with the dashboard's password was expected")
    open_to = "everybody on this machine" if mode & 0o007 else "its group" if mode & 0o070 else None
    return Password(secret, path, None if open_to is None else f"{path}: {open_to} can read the dashboard's password")
