"""What a study may not ask for is found when it is created."""

from __future__ import annotations

import pytest

from hpo.creation import check_networks
from hpo.errors import StudyFileError
from hpo.study_file import StudyFile


def study(**train: object) -> StudyFile:
    """Return a study that searches over two networks."""
    return StudyFile.model_validate(
        {
            "study": "s",
            "train": train,
            "search": {"arch": {"type": "categorical", "choices": ["tf_efficientnet_lite0", "resnet18"]}},
            "budget": {"trials": 2},
        }
    )


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ("bundled", "bundled are for arch tf_efficientnet_lite0, not resnet18"),
        ("imagenett", "imagenett is none of imagenet, bundled, none"),
        ("nowhere.pth", "there is no file nowhere.pth"),
    ],
)
def test_weights_that_a_network_cannot_have_are_refused(weights: str, complaint: str) -> None:
    """Else every worker would end at the first trial that draws that network."""
    with pytest.raises(StudyFileError, match=complaint) as caught:
        check_networks(study(weights=weights))
    assert str(caught.value).startswith("study 's': weights: ")


def test_networks_that_can_be_had_are_accepted() -> None:
    """Without weights every network of timm will do."""
    check_networks(study(weights="none"))
