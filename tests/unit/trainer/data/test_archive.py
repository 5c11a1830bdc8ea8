from __future__ import annotations

from pathlib import Path

import pytest

from trainer.data.archive import find_candidates, group_patients
from trainer.data.labels import Labels
from trainer.data.records import Code
from trainer.errors import InputError

LABELS = Labels({"01": 0, "02": 1, "03": 1, "../x": 0}, ("1", "2"), frozenset({"05", "06"}))


def fill(root: Path, *names: str) -> None:
    """Empty files below *root*."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_what_is_a_candidate(tmp_path: Path) -> None:
    """Every file below a labelled folder is a candidate, of any name and depth; everything else is listed with its code."""
    root = tmp_path / "archive"
    fill(root, "02/b", "01/series/a.dcm", "01/z.png", "1/c.dcm", "05/d.dcm", "loose.dcm")
    candidates, rejections = find_candidates(root, LABELS)
    assert [(found.path, found.accession, found.label) for found in candidates] == [
        ("01/series/a.dcm", "01", 0),
        ("01/z.png", "01", 0),
        ("02/b", "02", 1),
    ]
    assert {rejection.path: rejection.code for rejection in rejections} == {
        "03": Code.NO_IMAGE,
        "05/d.dcm": Code.EXCLUDED_CLASS,
        "06": Code.EXCLUDED_CLASS,
        "../x": Code.OUTSIDE_ROOT,
        "1/c.dcm": Code.NO_LABEL,
        "loose.dcm": Code.NO_LABEL,
    }


def test_links(tmp_path: Path) -> None:
    """Links within the root are used; those that lead out of it, to a file or a folder, are not followed."""
    root = tmp_path / "archive"
    fill(root, "01/a.dcm")
    fill(tmp_path, "outside/secret.dcm")
    (root / "01" / "within.dcm").symlink_to(root / "01" / "a.dcm")
    (root / "01" / "out.dcm").symlink_to(tmp_path / "outside" / "secret.dcm")
    (root / "01" / "folder").symlink_to(tmp_path / "outside")
    (root / "02").symlink_to(tmp_path / "outside")
    (root / "03").symlink_to(root / "01")
    candidates, rejections = find_candidates(root, LABELS)
    assert [found.path for found in candidates] == ["01/a.dcm", "01/within.dcm"]
    codes = {rejection.path: rejection.code for rejection in rejections}
    assert codes["01/out.dcm"] == codes["01/folder"] == codes["02"] == Code.OUTSIDE_ROOT
    assert codes["03"] == Code.NOT_IMAGE


def test_no_root(tmp_path: Path) -> None:
    """A root that is absent, a file or empty is named in one line."""
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("absent", "file", "empty"):
        with pytest.raises(InputError, match=name):
            find_candidates(tmp_path / name, LABELS)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """A file whose name is no UTF-8 is listed, not a crash."""
    fill(tmp_path, "01/a.dcm")
    (tmp_path / "01" / "\udcff.dcm").touch()
    candidates, rejections = find_candidates(tmp_path, LABELS)
    assert len(candidates) == 1
    assert ("01/\\udcff.dcm", Code.UNDECODABLE) in {(found.path, found.code) for found in rejections}


def test_patients_are_groups() -> None:
    """Images are one patient's when they share a PatientID or an accession number, through others too."""
    accessions = ["a1", "a1", "a2", "a3", "a3", "a4", "a5"]
    patient_ids = ["P_1_LEFT", "P_1_RIGHT", "P_1_LEFT", None, None, "P_4", "P_4"]
    assert group_patients(accessions, patient_ids) == ["P_1_LEFT"] * 3 + ["a3"] * 2 + ["P_4"] * 2
