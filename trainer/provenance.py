"""Which code and which libraries a result comes from."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from trainer.config import Strict

_LIBRARIES = (
    "mammography-hpo", "torch", "timm", "numpy", "scikit-learn", "opencv-python-headless", "pydicom", "optuna",
)  # fmt: skip


class Commit(Strict):
    """The state of the code."""

    git_commit: str | None
    """The commit's hash; None when the code runs neither from a checkout nor in an image."""
    git_dirty: bool | None
    """Whether files differ from that commit, or may do so in an image of which nobody knows; None without a commit."""


@cache
def commit() -> Commit:
    """
    Return the commit that this very package is checked out from: not of a repository that merely lies around it.

    In an image there is no checkout, and what was written down when the image was built counts.
    """
    here = Path(__file__)
    built_from = here.with_name("built_from.json")
    if built_from.is_file():
        return Commit.model_validate_json(built_from.read_text(encoding="utf-8"))
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return Commit(git_commit=None, git_dirty=None)
    changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no")
    return Commit(git_commit=_git(here.parent, "rev-parse", "HEAD"), git_dirty=bool(changed))


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, or None if there is no git or it refuses."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],  # nosec # noqa: S607 - whichever git the user has
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a number can depend on; nothing is imported for it."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found
