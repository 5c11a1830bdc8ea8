"""
What a DICOM header says of the projection: which view, of which side, of the whole breast or of a part of it.

Vendors say it in different places: as text, as codes, as a paddle, as a magnification factor, in a series' description.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pydicom import Dataset as DicomDataset

from trainer.config import VIEWS

# Source: DICOM PS3.16, CID 4014 "View for Mammography", in SRT and in SNOMED CT.
_VIEW_OF_CODE = {
    "R-10242": "CC", "399162004": "CC",
    "R-10226": "MLO", "399368009": "MLO",
    "R-10224": "ML", "399260004": "ML",
    "R-10228": "LM", "399352003": "LM",
    "R-10230": "LMO", "399099002": "LMO",
    "R-10244": "FB", "399196006": "FB",
    "R-102D0": "SIO", "399188001": "SIO",
    "R-40AAA": "ISO", "441555000": "ISO",
    "Y-X1770": "XCC", "399265009": "XCC",
    "R-1024A": "XCCL", "Y-X1771": "XCCL", "399192008": "XCCL",
    "R-1024B": "XCCM", "Y-X1772": "XCCM", "399101009": "XCCM",
}  # fmt: skip
# Source: DICOM PS3.16, CID 4015 "View Modifier for Mammography".
_SPECIAL_OF_CODE = {"R-102D6": "MAG", "399163009": "MAG", "R-102D7": "SPOT", "399055006": "SPOT"}
_SPECIAL_OF_WORD = {
    "SPOT": "SPOT",
    "MAG": "MAG",
    "MAGN": "MAG",
    "MAGNIFICATION": "MAG",
    "MAGNIFIED": "MAG",
    "MAGVIEW": "MAG",
    "MAGVIEWS": "MAG",
    "MICROFOCUS": "MAG",
}
_WITH_SIDE = {f"{side}{view}": view for side in "LR" for view in VIEWS if view not in {"AT", "CV"}}  # LAT is lateral
_MAGNIFIED = {f"{side}M{view}": view for side in ("", "L", "R") for view in ("CC", "MLO")}
"""Positions with the M of magnification, as in MCC."""
_CONTACT = 1.3
"""Magnification of the thickest breast on the table is less; of a magnified view it is 1.5 and more."""
_NUMBER = re.compile(r"\d+(\.\d*)?")
_SIDES = {"L": "L", "LEFT": "L", "R": "R", "RIGHT": "R"}


def view_of(dataset: DicomDataset) -> str | None:
    """Return the projection, one of `VIEWS`, by its name or else by its code; None where neither is known."""
    words = _words(dataset.get("ViewPosition"))
    for word in words:
        view = word if word in VIEWS else _WITH_SIDE.get(word, _MAGNIFIED.get(word, word))  # LMLO is MLO, but LM is LM
        if view in VIEWS:
            return view
    return next((_VIEW_OF_CODE[code] for code in _view_codes(dataset) if code in _VIEW_OF_CODE), None)


def special_view_of(dataset: DicomDataset) -> str | None:
    """Return SPOT or MAG where the picture is of a part of the breast, by any of the places where that is said."""
    for code in _modifier_codes(dataset):
        if code in _SPECIAL_OF_CODE:
            return _SPECIAL_OF_CODE[code]
    for keyword in ("ViewPosition", "PaddleDescription", "SeriesDescription", "ProtocolName"):
        for word in _words(dataset.get(keyword)):
            if word in _SPECIAL_OF_WORD:
                return _SPECIAL_OF_WORD[word]
    if any(word in _MAGNIFIED for word in _words(dataset.get("ViewPosition"))):
        return "MAG"
    factor = str(dataset.get("EstimatedRadiographicMagnificationFactor") or 1)
    return "MAG" if _NUMBER.fullmatch(factor.strip()) and float(factor) >= _CONTACT else None


def laterality_of(dataset: DicomDataset) -> str | None:
    """Return L or R, or None where the header says neither."""
    for keyword in ("ImageLaterality", "Laterality"):
        side = _SIDES.get(str(dataset.get(keyword) or "").strip(" \0").upper())
        if side is not None:
            return side
    return None


def described_by(dataset: DicomDataset, keywords: Iterable[str]) -> set[str]:
    """Return the words, in capitals, of the texts under *keywords*."""
    return {word for keyword in keywords for word in _words(dataset.get(keyword))}


def _view_codes(dataset: DicomDataset) -> Iterator[str]:
    """Yield the codes of the projection."""
    for view in dataset.get("ViewCodeSequence") or ():
        yield str(view.get("CodeValue") or "").strip(" \0")


def _modifier_codes(dataset: DicomDataset) -> Iterator[str]:
    """Yield the codes of what is special about it: they belong inside of the view's code, and often lie beside it."""
    for holder in (dataset, *(dataset.get("ViewCodeSequence") or ())):
        for modifier in holder.get("ViewModifierCodeSequence") or ():
            yield str(modifier.get("CodeValue") or "").strip(" \0")


def _words(value: object) -> list[str]:
    """Return the words of a header's text or texts, in capitals; an underscore parts words too."""
    return re.findall(r"[A-Z0-9]+", str(value).upper()) if value is not None else []
