"""Which code a result comes from: a checkout says it through git, an image by what was written when it was built."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer import provenance

PROJECT = Path(provenance.__file__).parents[1]
SCRIPT = PROJECT / "docker" / "built_from.sh"
COMMIT_OF_NOBODY = "0123456789abcdef0123456789abcdef01234567"


def git(folder: Path, *arguments: str) -> str:
    """Run git in *folder* and return what it prints."""
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def built_from(folder: Path, **said: str) -> tuple[int, str, str]:
    """Run the script of the build in *folder*, with these build arguments."""
    environment = {"PATH": os.environ["PATH"], "GIT_CEILING_DIRECTORIES": str(folder.parent), **said}
    done = subprocess.run(["/bin/sh", SCRIPT], cwd=folder, env=environment, check=False, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def said_of(folder: Path, **said: str) -> dict[str, Any]:
    """Return what an image that is built of *folder* will say."""
    code, out, err = built_from(folder, **said)
    assert code == 0, err
    record: dict[str, Any] = json.loads(out)
    return record


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with a package, all of it committed."""
    folder = tmp_path / "clone"
    for name in ("hpo", "storage", "trainer", "docker"):
        (folder / name).mkdir(parents=True)
        (folder / name / "some.py").write_text("1\n", encoding="utf-8")
    for name in ("pyproject.toml", "constraints.txt", "Dockerfile", "notes.md"):
        (folder / name).write_text("1\n", encoding="utf-8")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "all")
    return folder


def test_a_clean_clone(clone: Path) -> None:
    """The build asks git. A file that does not go into the context is not there, and that changes nothing."""
    (clone / "notes.md").unlink()
    assert said_of(clone) == {"git_commit": git(clone, "rev-parse", "HEAD"), "git_dirty": False}


@pytest.mark.parametrize("file", ["trainer/some.py", "hpo/new.py", "pyproject.toml"])
def test_a_changed_clone(clone: Path, file: str) -> None:
    """Changed and new code is in the image, so the image does not say that it is the commit's."""
    (clone / file).write_text("2\n", encoding="utf-8")
    assert said_of(clone)["git_dirty"] is True


def test_what_is_said_counts(clone: Path, tmp_path: Path) -> None:
    """Build arguments win over git; who says the commit and not whether it was changed has not said that it was not."""
    assert said_of(clone, GIT_COMMIT="abc", GIT_DIRTY="false") == {"git_commit": "abc", "git_dirty": False}
    assert said_of(clone, GIT_COMMIT="abc") == {"git_commit": "abc", "git_dirty": True}
    assert said_of(clone, GIT_DIRTY="true")["git_dirty"] is True
    assert said_of(tmp_path, GIT_COMMIT="v1.2", GIT_DIRTY="false") == {"git_commit": "v1.2", "git_dirty": False}


def test_what_nobody_knows_is_not_clean(tmp_path: Path) -> None:
    """An unpacked archive has no git: the build says so, and the record neither is empty nor claims anything."""
    code, out, err = built_from(tmp_path)
    assert (code, json.loads(out)) == (0, {"git_commit": "unknown", "git_dirty": True})
    assert "GIT_COMMIT" in err


@pytest.mark.parametrize("said", [{"GIT_DIRTY": "no"}, {"GIT_COMMIT": 'a"b'}])
def test_wrong_build_arguments_end_the_build(tmp_path: Path, said: dict[str, str]) -> None:
    """What is no commit and no answer is refused, and the line names it."""
    code, out, err = built_from(tmp_path, **said)
    assert (code, out) == (1, "")
    assert next(iter(said)) in err


def test_in_an_image_the_built_commit_counts(tmp_path: Path) -> None:
    """The package in an image lies in no checkout, and says what was written down beside it."""
    package = tmp_path / "trainer"
    package.mkdir()
    for name in ("__init__.py", "provenance.py", "config.py", "errors.py"):
        (package / name).symlink_to(PROJECT / "trainer" / name)
    (package / "built_from.json").write_text(
        f'{{"git_commit": "{COMMIT_OF_NOBODY}", "git_dirty": false}}', encoding="utf-8"
    )
    code = "from trainer.provenance import commit; print(commit().model_dump_json())"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code], env={"PYTHONPATH": str(tmp_path)}, check=True, capture_output=True
    )
    assert json.loads(ran.stdout) == {"git_commit": COMMIT_OF_NOBODY, "git_dirty": False}
