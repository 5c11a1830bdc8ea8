"""What of a clone goes to the builder, which may keep it: enough to know the commit, and nothing secret."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[3]
GIT = shutil.which("git") or "git"
SHELL = shutil.which("sh") or "sh"
TOKEN = "t0k3n"  # noqa: S105 - of a test


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of what goes into an image, as it is in the working tree, with a token where people have theirs."""
    folder = tmp_path / "clone"
    for name in ("docker", "storage"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", "pyproject.toml", "constraints.txt", "Dockerfile"):
        shutil.copy(PROJECT / name, folder)
    (folder / ".env").write_text(f"PASSWORD={TOKEN}\n", encoding="utf-8")
    for arguments in (
        ("init", "--quiet"),
        ("remote", "add", "origin", f"https://me:{TOKEN}@example.org/clone"),
        ("config", "user.name", "me"),
        ("config", "user.email", "me@example.org"),
        ("add", "."),
        ("commit", "--quiet", "--message", "all of it"),
    ):
        subprocess.run([GIT, "-C", str(folder), *arguments], check=True)
    (folder / ".git" / "hooks" / "post-commit").write_text(f"curl -u {TOKEN} example.org\n", encoding="utf-8")
    (folder / ".git" / "logs" / "HEAD").write_text(f"pulled from https://{TOKEN}@example.org\n", encoding="utf-8")
    return folder


def context_of(clone: Path) -> Path:
    """Return a copy of what `.dockerignore` leaves of *clone*: what it names after a `!`, for it begins with `*`."""
    lines = (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    context = clone.with_name("context")
    for name in (rule[1:] for rule in rules if rule.startswith("!")):
        found = clone / name
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        if found.is_dir():
            shutil.copytree(found, context / name)
        elif found.is_file():
            shutil.copy(found, context / name)
    return context


def built_from(context: Path) -> dict[str, object]:
    """Return what an image made of *context* says that it was built from."""
    done = subprocess.run(
        [SHELL, "docker/built_from.sh"],
        cwd=context,
        env={"PATH": str(Path(GIT).parent)},
        check=True,
        capture_output=True,
        text=True,
    )
    said: dict[str, object] = json.loads(done.stdout)
    return said


def test_the_commit_is_known_and_no_token_goes_along(clone: Path) -> None:
    """Addresses with tokens, hooks, logs and settings stay where they are; the commit is right, and clean."""
    context = context_of(clone)
    assert not [path for path in context.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    commit = subprocess.run([GIT, "-C", str(clone), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert built_from(context) == {"git_commit": commit.stdout.strip(), "git_dirty": False}


def test_changed_code_is_seen(clone: Path) -> None:
    """A changed file, and one that git does not know, make an image that is not of its commit alone."""
    (clone / "storage" / "new.py").write_text("", encoding="utf-8")
    assert built_from(context_of(clone))["git_dirty"] is True
