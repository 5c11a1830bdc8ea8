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


@pytest.mark.parametrize(
    ("train", "complaint"),
    [
        ({"drop_path": 0.1}, "arch: dla46x_c cannot be built with {'drop_path_rate': 0.1}"),
        (
            {"embeddings_dir": "vectors"},
            "embeddings_dir: the head of VisionTransformerDistilled is not one linear layer",
        ),
    ],
)
def test_settings_that_a_network_cannot_have_are_refused(train: dict[str, object], complaint: str) -> None:
    """Named when the study is created, for each network that may be drawn with them."""
    archs = {"drop_path": "dla46x_c", "embeddings_dir": "deit_tiny_distilled_patch16_224"}
    (setting,) = train
    file = study(weights="none", img_size=224, **train)
    arch = {"type": "categorical", "choices": ["tf_efficientnet_lite0", archs[setting]]}
    changed = StudyFile.model_validate({**file.model_dump(), "search": {"arch": arch}})
    with pytest.raises(StudyFileError, match=f"study 's': {complaint}"):
        check_networks(changed)


def test_networks_that_can_be_had_are_accepted() -> None:
    """Without weights every network of timm will do."""
    check_networks(study(weights="none"))
