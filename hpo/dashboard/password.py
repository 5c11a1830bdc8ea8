"""Where the dashboard's password comes from: a file, the environment, or chance."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hpo.errors import SearchError

_LONGEST = 1024  # bytes of a password


class PasswordError(SearchError):
    """What was meant as a password is none, or cannot be read; the message says where it is and never shows it."""


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
    whoever restarts the dashboard has nothing to tell anybody. Removing the file makes a new one. Where it cannot be kept at
    *kept* (an output tree that is mounted read-only, or without hard links) it is left in the
    system's temporary folder.

    Raises:
        PasswordError: The file cannot be read, is empty, or holds more than one line; *secret* is no text.
    """
    if file is not None:
        return _read(file)
    if secret is not None:
        return _check(secret)
    try:
        return _keep(kept)
    except OSError:
        return _leave()


def _keep(path: Path) -> Password:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        made = _make(f"{path.name}-", path.parent)
        try:
            path.hardlink_to(made)  # whole or not at all, and of two starts at a time one wins
        except FileExistsError:
            pass
        finally:
            made.unlink()
    if not os.access(path, os.R_OK):  # another user's: a container that only looks on
        raise PermissionError(path)
    return _read(path)


def _leave() -> Password:
    return _read(_make("mammography-dashboard-password-"))


def _make(prefix: str, folder: Path | None = None) -> Path:
    """Return a new file, in the system's temporary folder unless another is said, with a random password in it."""
    descriptor, name = tempfile.mkstemp(prefix=prefix, dir=folder)  # of mode 600
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(f"{secrets.token_urlsafe(16)}\n")
    return Path(name)


def _check(secret: str) -> Password:
    try:
        secret.encode()
    except UnicodeEncodeError:  # `from None`: the error would carry the password along
        raise PasswordError("the dashboard's password in the environment is no text in UTF-8") from None
    return Password(secret, None)


def _read(path: Path) -> Password:
    try:
        with open(path, "rb", opener=_at_once) as stream:
            mode = os.fstat(stream.fileno()).st_mode
            content = stream.read(_LONGEST + 1) if stat.S_ISREG(mode) else None
    except OSError as error:
        raise PasswordError(f"{path}: the dashboard's password cannot be read: {error.strerror}") from error
    if content is None:
        raise PasswordError(f"{path}: a file with the dashboard's password was expected")
    try:
        secret = content.decode("utf-8-sig").strip("\r\n")
    except UnicodeDecodeError:
        # `from None`: the error would carry the content along
        raise PasswordError(f"{path}: the dashboard's password is no text in UTF-8") from None
    if not secret.strip():
        raise PasswordError(f"{path}: no password is in it: write one, or remove the file where you did not make it")
    if "\n" in secret or len(content) > _LONGEST:
        raise PasswordError(f"{path}: one line with the dashboard's password was expected")
    open_to = "everybody on this machine" if mode & 0o007 else "its group" if mode & 0o070 else None
    return Password(secret, path, None if open_to is None else f"{path}: {open_to} can read the dashboard's password")


def _at_once(path: str, flags: int) -> int:
    """Open without waiting for whoever may write to a named pipe."""
    return os.open(path, flags | os.O_NONBLOCK)
