"""
Whether a DICOM header is that of a usable mammogram, and whom and what it says it shows.

No tag alone decides: each is missing or odd in some archive. What a reason quotes is a known term, never a stranger's text.
"""

from __future__ import annotations

from collections.abc import Container

from pydicom import Dataset as DicomDataset
from pydicom.uid import (
    UID,
    BreastProjectionXRayImageStorageForPresentation,
    BreastProjectionXRayImageStorageForProcessing,
    BreastTomosynthesisImageStorage,
    ComputedRadiographyImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

from trainer.data.mammogram import MAX_PIXELS, RejectedError
from trainer.data.records import Code
from trainer.data.views import described_by, view_of

_MAMMOGRAPHY_CLASSES = {
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
    BreastTomosynthesisImageStorage,
    BreastProjectionXRayImageStorageForPresentation,
    BreastProjectionXRayImageStorageForProcessing,
}
_PROJECTION_CLASSES = {
    SecondaryCaptureImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
}
_TOMOSYNTHESIS_CLASSES = {
    BreastTomosynthesisImageStorage,
    BreastProjectionXRayImageStorageForPresentation,
    BreastProjectionXRayImageStorageForProcessing,
}
_FOR_PROCESSING_CLASSES = {
    DigitalMammographyXRayImageStorageForProcessing,
    DigitalXRayImageStorageForProcessing,
}
_MAMMOGRAPHY_MODALITIES = {"", "MG", "RG"}  # none at all in RSNA's files, RG in test images
_PROJECTION_MODALITIES = {"CR", "DX", "OT", "SC"}  # mammograms only if something else says so
_OTHER_MODALITIES = {"CT", "ES", "KO", "MR", "NM", "PR", "PT", "RF", "SM", "SR", "US", "XA"}
"""Those that are named when they are refused; what else may stand there is a stranger's text."""
_OTHER_PHOTOMETRICS = {"HSV", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}
_BREAST = {"BREAST", "BREASTS", "MAMA", "MAMAS", "MAMMA", "MAMMO", "MAMMOGRAM", "MAMMOGRAPHY"}
_VIEWS_OF_OTHER_PARTS = {"ML", "LM"}
"""Views that a knee has too."""
_WORDS_OF_DOCUMENTS = {"DOSE", "REPORT", "SCREENSHOT", "SCREENSAVE", "SCREEN"}
_NOBODY = {
    "ANON", "ANONYM", "ANONYMOUS", "ANONYMIZED", "ANONYMISED", "DEIDENTIFIED", "DE-IDENTIFIED", "REMOVED", "UNKNOWN", "NONE",
    "NULL", "NA", "N/A",
}  # fmt: skip
"""What anonymisers write in the place of every PatientID, beside rows of zeros or of signs."""
_SIGNS_OF_NOBODY = frozenset("0X-_.*# ")


def check_usable(dataset: DicomDataset) -> None:
    """Reject what is no single grey mammogram of a credible size."""
    _check_mammography(dataset)
    sop_class = _sop_class(dataset)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1 or sop_class in _TOMOSYNTHESIS_CLASSES:
        raise RejectedError(Code.MULTIFRAME, f"{frames} frames" if frames > 1 else "a frame of tomosynthesis")
    if "Rows" not in dataset or "Columns" not in dataset:
        raise RejectedError(Code.NOT_IMAGE, "no rows and columns")
    meaning = photometric(dataset)
    if not meaning:  # the file may end before it
        raise RejectedError(Code.NOT_IMAGE, "no photometric interpretation")
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or meaning not in {"MONOCHROME1", "MONOCHROME2"}:
        raise RejectedError(
            Code.NOT_MAMMOGRAPHY,
            f"photometric interpretation {_shown(meaning, _OTHER_PHOTOMETRICS)}, expected grey",
        )
    if int(dataset.BitsAllocated) not in {8, 16}:
        raise RejectedError(Code.UNDECODABLE, f"{int(dataset.BitsAllocated)} bits allocated, expected 8 or 16")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns > MAX_PIXELS:
        raise RejectedError(Code.TOO_LARGE, f"{rows} x {columns} pixels")
    if rows * columns == 0:
        raise RejectedError(Code.NOT_IMAGE, f"{rows} x {columns} pixels")


def _check_mammography(dataset: DicomDataset) -> None:
    """Reject what is no projection of a breast. No tag alone decides: each is missing or odd in some archive."""
    modality, sop_class = _text(dataset, "Modality").upper(), UID(_sop_class(dataset))
    is_private = bool(sop_class) and sop_class.is_private  # a vendor's own: the rest of the header has to tell
    if sop_class and not is_private and sop_class not in _MAMMOGRAPHY_CLASSES | _PROJECTION_CLASSES:
        raise RejectedError(Code.NOT_MAMMOGRAPHY, f"SOP class {sop_class.name if sop_class.type else 'unknown'}")
    if modality not in _MAMMOGRAPHY_MODALITIES | _PROJECTION_MODALITIES:
        raise RejectedError(Code.NOT_MAMMOGRAPHY, f"modality {_shown(modality, _OTHER_MODALITIES)}")
    view = view_of(dataset)
    words = described_by(dataset, ("SeriesDescription", "ImageType", "ProtocolName"))
    if sop_class not in _MAMMOGRAPHY_CLASSES and view is None and words & _WORDS_OF_DOCUMENTS:
        raise RejectedError(Code.NOT_MAMMOGRAPHY, "a picture of a document, such as a dose report")
    body_part = described_by(dataset, ("BodyPartExamined",))
    if "SPECIMEN" in words | body_part:
        raise RejectedError(Code.NOT_MAMMOGRAPHY, "a specimen")
    if modality == "MG" or sop_class in _MAMMOGRAPHY_CLASSES:
        return
    if body_part:
        of_breast = bool(body_part & _BREAST) or (view is not None and view not in _VIEWS_OF_OTHER_PARTS)
    else:
        of_breast = view is not None or not (modality in _PROJECTION_MODALITIES or is_private)
    if not of_breast:
        raise RejectedError(Code.NOT_MAMMOGRAPHY, "neither modality MG nor a body part or view of mammography")


def photometric(dataset: DicomDataset) -> str:
    """Return what stored values mean as a picture."""
    return _text(dataset, "PhotometricInterpretation").upper()


def is_for_processing(dataset: DicomDataset) -> bool:
    """Return whether the pixels are raw detector values, by what the header says or by its class."""
    intent = _text(dataset, "PresentationIntentType").upper()
    return intent == "FOR PROCESSING" or _sop_class(dataset) in _FOR_PROCESSING_CLASSES


def is_linear(dataset: DicomDataset) -> bool:
    """
    Return whether values are proportional to the intensity of the X-rays, and not to its logarithm.

    Source: DICOM PS3.3, C.8.11.3.1.2; raw images that do not say so are, as detectors are.
    """
    relationship = _text(dataset, "PixelIntensityRelationship").upper()
    return is_for_processing(dataset) and relationship not in {"LOG", "DISP"}


def _sop_class(dataset: DicomDataset) -> str:
    """Return what kind of object it is, by its header or else by the one before it; empty where neither says so."""
    return _text(dataset, "SOPClassUID") or _text(dataset.file_meta, "MediaStorageSOPClassUID")


def patient_id(dataset: DicomDataset) -> str | None:
    """Return the PatientID, or None where there is none or one that everybody has."""
    patient_id = _text(dataset, "PatientID")
    is_nobody = patient_id.upper() in _NOBODY or set(patient_id.upper()) <= _SIGNS_OF_NOBODY
    return None if is_nobody else patient_id


def _shown(text: str, known: Container[str]) -> str:
    """Return *text* if it is one of the *known* terms: what else is written there may be a patient's name."""
    return text if text in known else "unknown" if text else "absent"


def _text(dataset: DicomDataset, keyword: str) -> str:
    """Return a header's text without padding; empty where it is absent."""
    value = dataset.get(keyword)
    return "" if value is None else str(value).replace("\0", "").strip()
