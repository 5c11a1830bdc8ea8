"""Files that somebody made to be run, or to lead elsewhere: refused in one line or left out."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.laboratory import STUDY, Laboratory


def test_a_study_file_runs_nothing_and_leads_nowhere(laboratory: Laboratory) -> None:
    """Tags that make objects and names that are paths are refused before a database is asked or a folder is made."""
    folder, made = laboratory.folder, laboratory.folder / "made"
    for number, text in enumerate(
        (f"{STUDY}x: !!python/object/apply:os.mkdir [{made}]\n", STUDY.replace("small", "../../x"))
    ):
        (folder / f"{number}.yaml").write_text(text)
    (folder / "good.yaml").write_text(STUDY)
    create = ("study", "create", *laboratory.data)
    refused = {
        "0.yaml: line 9: could not determine a constructor": ("0.yaml",),
        "'../../x' cannot be a study's name": ("1.yaml",),
        "'/tmp/x' cannot be a study's name": ("good.yaml", "--name", "/tmp/x"),  # noqa: S108 - refused
        "'a\\nb' cannot be a study's name": ("good.yaml", "--name", "a\nb"),
    }
    started = {complaint: laboratory.start(*create, *arguments) for complaint, arguments in refused.items()}
    for complaint, process in started.items():
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, len(err.splitlines())) == (2, "", 1), err
        assert complaint in err
    assert not made.exists()
    assert not laboratory.outputs.exists()


@pytest.mark.parametrize("label_format", ["archive", "csv", "vindr"])
def test_nothing_outside_the_root_is_opened(laboratory: Laboratory, label_format: str) -> None:
    """Rows and links that lead out of the root are listed; what they name is a pipe, at which a reader would wait for ever."""
    archive = Path(shutil.copytree(laboratory.archive, laboratory.folder / "copy"))
    root, outside = archive / "archive", laboratory.folder / "outside"
    (outside / "0000098").mkdir(parents=True)
    for pipe in (outside / "secret.dcm", outside / "0000098" / "secret.dcm"):
        os.mkfifo(pipe)
    (root / "0000098").symlink_to(outside / "0000098")
    (root / "0000001" / "out.dcm").symlink_to("../../../outside/secret.dcm")
    (root / "0000001" / "round").symlink_to(root)
    images = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.dcm") if not path.is_symlink())
    table = {
        "archive": [
            "AccessionNumber,Classification",
            *(f"{name:07d},{name % 4 + 1}" for name in range(1, 25)),
            "0000098,1",
        ]
        + [f"{name},1" for name in ("../outside", str(outside), "..", "0000001/../../outside")],
        "csv": ["image,label", *(f"{name},{number // 4 % 4 + 1}" for number, name in enumerate(images))]
        + [
            f"{name},1"
            for name in ("../outside/secret.dcm", f"{outside}/secret.dcm", "0000001/out.dcm", "..\\outside\\secret.dcm")
        ],
        "vindr": ["study_id,image_id,breast_density"]
        + [
            f"{Path(name).parent},{Path(name).stem},DENSITY {'ABCD'[number // 4 % 4]}"
            for number, name in enumerate(images)
        ]
        + [
            "..,outside,DENSITY A",
            "../../outside,secret,DENSITY A",
            f"{outside},secret,DENSITY A",
            "0000001,out,DENSITY A",
        ],
    }[label_format]
    (archive / "labels.csv").write_text("\n".join(table) + "\n")
    checked = laboratory.run(
        "data", "check", "--csv", archive / "labels.csv", "--dicom-root", root, "--json", timeout_s=100
    )
    assert checked.code == 0, checked.err
    found = json.loads(checked.out)
    assert found["rejected"]["OUTSIDE_ROOT"] >= 4, found["rejected"]
    assert found["rejected"]["LINK"] == 1
