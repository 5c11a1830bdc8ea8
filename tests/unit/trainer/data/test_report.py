from __future__ import annotations

from pathlib import Path

import numpy as np

from trainer.data.records import Code, Dataset, ImageRecord, Rejection
from trainer.data.report import read_report, summary, write_report

REJECTIONS = (Rejection('a/"b",\n.dcm', Code.BLANK, "nothing, at all"), Rejection("07", Code.NO_IMAGE, "none"))


def test_report_comes_back(tmp_path: Path) -> None:
    """Every path is listed with its code and reason, whatever is in its name."""
    write_report(tmp_path / "data_report.csv", REJECTIONS)
    assert (tmp_path / "data_report.csv").read_text().startswith("path,code,reason\n")
    assert tuple(read_report(tmp_path / "data_report.csv")) == REJECTIONS
    assert [path.name for path in tmp_path.iterdir()] == ["data_report.csv"]


def test_summary() -> None:
    """One line counts images, patients, classes and rejections, and names no patient."""
    records = tuple(ImageRecord(f"{n}", "", "a", f"P{n // 2}", n % 2, None, None) for n in range(5))
    data = Dataset(np.zeros((5, 1, 1), np.uint8), records, ("2", "3"), REJECTIONS, "")
    assert summary(data) == "5 images of 3 patients (class 2: 3, class 3: 2); not used: BLANK 1, NO_IMAGE 1"
