"""What the dashboard's image installs is enough for the dashboard, and far less than training needs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

PROJECT = Path(__file__).parents[3]
LOAD_WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in absent:
            raise ModuleNotFoundError(f"not in the image: {name}", name=name)

absent = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Absent())
import hpo.dashboard.serving, hpo.commands.serving, hpo.metrics, hpo.status, hpo.tables
import storage.artifact_store, storage.study_storage
"""


def canonical(name: str) -> str:
    """Return the name of a distribution as indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_with(names: list[str]) -> set[str]:
    """Return the distributions that pip installs for *names*: these and what they need."""
    found: set[str] = set()
    while names:
        name = canonical(re.split(r"[^\w.-]", names.pop(), maxsplit=1)[0])
        if name not in found:
            found.add(name)
            try:
                needed = metadata.requires(name) or []
            except metadata.PackageNotFoundError:  # of another platform
                continue
            names += [requirement for requirement in needed if "extra ==" not in requirement]
    return found


def test_the_dashboard_needs_no_more_than_its_image_has() -> None:
    """Every module that it and `study status` load comes with the dependency group; torch does not."""
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    in_image = installed_with(list(declared["dependency-groups"]["dashboard"]))
    assert not in_image & {"torch", "torchvision", "timm"}
    assert "boto3" in in_image, "it shows artifacts in a bucket, too"
    modules = metadata.packages_distributions()
    absent = [name for name, owners in modules.items() if not set(map(canonical, owners)) & in_image]
    ours = {"hpo", "storage", "trainer", "tests"}
    ran = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT, ",".join(sorted(set(absent) - ours))],
        cwd=PROJECT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
