from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from trainer.data.archive import Candidate, find_candidates
from trainer.data.labels import Labels, read_labels
from trainer.data.naming import AsTheArchive
from trainer.data.records import Code, Rejection
from trainer.errors import InputError

ROWS = "AccessionNumber,Classification\n01,1\n02,2\n03,2\n05,5\n06,5\n../x,1\n"


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    """Labels of a few accession numbers, two of class 5, one that is a path."""
    path = tmp_path / "labels.csv"
    path.write_text(ROWS)
    return read_labels(path)


def found(root: Path, labels: Labels) -> tuple[list[Candidate], list[Rejection]]:
    """What is found, as the archive calls it."""
    return find_candidates(root, labels, AsTheArchive())


def codes(rejections: list[Rejection]) -> dict[str, Code]:
    """The code of each path."""
    return {rejection.path: rejection.code for rejection in rejections}


def fill(root: Path, *names: str) -> None:
    """Empty files below *root*."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_what_is_a_candidate(tmp_path: Path, labels: Labels) -> None:
    """Every file below a labelled folder is a candidate, of any name and depth; everything else is listed with its code."""
    root = tmp_path / "archive"
    fill(root, "02/b", "01/series/a.dcm", "01/z.png", "1/c.dcm", "05/d.dcm", "loose.dcm")
    candidates, rejections = found(root, labels)
    assert [(each.path, each.accession, each.label) for each in candidates] == [
        ("01/series/a.dcm", "01", 0),
        ("01/z.png", "01", 0),
        ("02/b", "02", 1),
    ]
    assert codes(rejections) == {
        "03": Code.NO_IMAGE,
        "05/d.dcm": Code.EXCLUDED_CLASS,
        "06": Code.EXCLUDED_CLASS,
        "../x": Code.OUTSIDE_ROOT,
        "1/c.dcm": Code.NO_LABEL,
        "loose.dcm": Code.NO_LABEL,
    }


def test_links_out_of_the_root(tmp_path: Path, labels: Labels) -> None:
    """A link that leads out of the root, to a file or a folder, also by a detour, is not followed."""
    root = tmp_path / "archive"
    fill(root, "01/a.dcm")
    fill(tmp_path, "outside/secret.dcm", "archive-of-another/01/x.dcm")
    (root / "01" / "out.dcm").symlink_to(tmp_path / "outside" / "secret.dcm")
    (root / "01" / "relative.dcm").symlink_to("../../outside/secret.dcm")
    (root / "01" / "folder").symlink_to(tmp_path / "outside")
    (root / "01" / "detour").symlink_to("folder")
    (root / "02").symlink_to(tmp_path / "outside")
    (root / "03").symlink_to(tmp_path / "archive-of-another")
    candidates, rejections = found(root, labels)
    assert [each.path for each in candidates] == ["01/a.dcm"]
    names = ("01/out.dcm", "01/relative.dcm", "01/folder", "01/detour", "02", "03")
    assert {codes(rejections)[name] for name in names} == {Code.OUTSIDE_ROOT}


def test_links_within_the_root(tmp_path: Path, labels: Labels) -> None:
    """Links to files and folders of the archive are followed; those that go nowhere, in circles or to what is used are listed."""
    root = tmp_path / "archive"
    fill(root, "01/a.dcm", "store/7/b.dcm")
    (root / "01" / "within.dcm").symlink_to(root / "01" / "a.dcm")
    (root / "02").symlink_to("store/7")
    (root / "01" / "gone.dcm").symlink_to("gone")
    (root / "01" / "self").symlink_to("self")
    (root / "01" / "up").symlink_to(root)
    (root / "01" / "here").symlink_to(".")
    (root / "store" / "7" / "other").symlink_to(root / "01")
    candidates, rejections = found(root, labels)
    assert [each.path for each in candidates] == ["01/a.dcm", "02/b.dcm"]
    links = {path for path, code in codes(rejections).items() if code == Code.LINK}
    assert links >= {"01/within.dcm", "01/gone.dcm", "01/self", "01/up", "01/here", "02/other"}


def test_a_root_that_is_a_link(tmp_path: Path, labels: Labels) -> None:
    """The root itself may be a link."""
    fill(tmp_path / "real", "01/a.dcm")
    (tmp_path / "archive").symlink_to("real")
    assert [each.path for each in found(tmp_path / "archive", labels)[0]] == ["01/a.dcm"]


def test_links_in_every_folder_end(tmp_path: Path, labels: Labels) -> None:
    """Folders that link to each other are looked into once by each link and no deeper, and each file is used once."""
    root = tmp_path / "archive"
    for number in range(30):
        fill(root, f"01/{number}/a.dcm")
        for other in range(30):
            if other != number:
                (root / "01" / str(number) / f"to{other}").symlink_to(f"../{other}")
    (root / "02").symlink_to("01")
    start = time.monotonic()
    candidates, _ = found(root, labels)
    assert [each.path for each in candidates] == sorted(f"01/{number}/a.dcm" for number in range(30))
    assert time.monotonic() - start < 10


def test_folders_in_folders(tmp_path: Path, labels: Labels) -> None:
    """The depth of an archive is no matter."""
    (tmp_path / "01").mkdir()
    place = os.open(tmp_path / "01", os.O_RDONLY)
    for _ in range(1200):  # one by one: the whole path is longer than a system call takes
        os.mkdir("d", dir_fd=place)
        deeper = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = deeper
    os.close(place)
    fill(tmp_path, "01/a.dcm")
    candidates, _ = found(tmp_path, labels)
    subprocess.run(["rm", "-r", str(tmp_path / "01" / "d")], check=True)  # noqa: S607  deeper than Python can remove
    assert [each.path for each in candidates] == ["01/a.dcm"]


def test_no_root(tmp_path: Path, labels: Labels) -> None:
    """A root that is absent, a file or empty is named in one line."""
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("absent", "file", "empty"):
        with pytest.raises(InputError, match=name):
            found(tmp_path / name, labels)


def test_a_name_that_is_no_text(tmp_path: Path, labels: Labels) -> None:
    """A file whose name is no UTF-8 is listed, not a crash."""
    fill(tmp_path, "01/a.dcm")
    (tmp_path / "01" / "\udcff.dcm").touch()
    candidates, rejections = found(tmp_path, labels)
    assert len(candidates) == 1
    assert codes(rejections)["01/\\udcff.dcm"] == Code.UNDECODABLE


def test_what_is_no_image_by_its_kind(tmp_path: Path, labels: Labels) -> None:
    """A pipe is never opened, and what operating systems leave about does not count as a broken image."""
    fill(tmp_path, "01/a.dcm", "01/.DS_Store", "01/._a.dcm", "01/Thumbs.db")
    os.mkfifo(tmp_path / "01" / "pipe")
    candidates, rejections = found(tmp_path, labels)
    assert [each.path for each in candidates] == ["01/a.dcm"]
    own = {path: code for path, code in codes(rejections).items() if path.startswith("01/")}
    assert own.pop("01/pipe") == Code.NOT_IMAGE
    assert set(own.values()) == {Code.SYSTEM_FILE}
    assert len(own) == 3
    assert not Code.SYSTEM_FILE.broken


def test_many_labels_without_images(tmp_path: Path) -> None:
    """20 000 labels of which three have an image are read in a moment, and each of the others is listed."""
    path = tmp_path / "labels.csv"
    path.write_text("AccessionNumber,Classification\n" + "".join(f"{n:07d},{1 + n % 4}\n" for n in range(20_000)))
    fill(tmp_path / "archive", "0000001/a", "0019999/a", "0000007/a")
    start = time.monotonic()
    candidates, rejections = found(tmp_path / "archive", read_labels(path))
    assert time.monotonic() - start < 3
    assert [each.accession for each in candidates] == ["0000001", "0000007", "0019999"]
    assert len(rejections) == 19_997
    assert {rejection.code for rejection in rejections} == {Code.NO_IMAGE}
