"""
Every field of a run, declared once: the command line, the study file and the search space are made from these classes.

Two things are kept apart. A `TrainConfig` is what a trial *is*: with the data, the folds and the seeds it determines the
result. A `RunConfig` adds where things are and where they go, which must not.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator


def nearest(name: str, known: list[str]) -> str:
    """Return ``, did you mean 'x'?`` for the known name closest to *name*, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def one_line(error: ValidationError) -> str:
    """Return the first complaint of *error* as ``where: what``, with the dots that a study file's reader would write."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    where = ".".join(str(part) for part in first["loc"])
    got = (
        f", got {first['input']!r}"
        if isinstance(first["input"], str | int | float) and "Value error" not in first["msg"]
        else ""
    )
    return f"{where}: {message}{got}" if where else f"{message}{got}"


class Strict(BaseModel):
    """A record that is checked when it is made, refuses what it does not know, and never changes."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )

    @model_validator(mode="before")
    @classmethod
    def _only_known_names(cls, data: Any) -> Any:
        for name in data if isinstance(data, dict) else ():
            if name not in cls.model_fields:
                raise ValueError(f"unknown name {name!r}{nearest(str(name), list(cls.model_fields))}")
        return data


Part = TypeVar("Part", bound=Strict)


def part_of(config: Strict, kind: type[Part]) -> Part:
    """Return the fields of *config* that those of *kind* are, as one of these."""
    return kind.model_validate({name: getattr(config, name) for name in kind.model_fields})


def _class_weights(value: Any) -> Any:
    """Return ``"1,2.5"`` from a command line as ``(1.0, 2.5)``; everything else as it is."""
    if not isinstance(value, str) or value in {"none", "auto"}:
        return value
    try:
        weights = tuple(float(part) for part in value.split(","))
    except ValueError:
        weights = ()
    if not weights or min(weights) <= 0:
        raise ValueError(f"expected none, auto or one number above 0 a class, w0,w1,..., got {value!r}")
    return weights


ClassWeights = Annotated[
    Literal["none", "auto"] | tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_class_weights)
]


VIEWS = ("CC", "MLO", "ML", "LM", "LMO", "XCC", "XCCL", "XCCM", "FB", "SIO", "ISO", "AT", "CV")
"""Projections of the whole breast, or of its rim, as DICOM abbreviates them."""
SPECIAL_VIEWS = ("SPOT", "MAG")
"""Pictures of a part of the breast: spot compression and magnification, of whatever projection."""


def _views(value: Any) -> Any:
    """Return ``"cc,MLO"`` from a command line as ``("CC", "MLO")``; ``standard``, ``all`` and everything else as it is."""
    if isinstance(value, str) and value not in {"standard", "all"}:
        value = value.split(",")
    if not isinstance(value, list | tuple):
        return value
    views = tuple(dict.fromkeys(str(view).strip().upper() for view in value))
    for view in views:
        if view not in VIEWS + SPECIAL_VIEWS:
            raise ValueError(f"expected standard, all or some of {','.join(VIEWS + SPECIAL_VIEWS)}, got {view!r}")
    if not views:
        raise ValueError("expected one view at least")
    return views


class SelectionConfig(Strict):
    """How a label file is read, and which images of an archive are used."""

    format: Literal["auto", "archive", "inbreast", "cbis-ddsm", "vindr", "rsna", "mini-mias", "csv"] = "auto"
    """What kind of label file it is; auto tells by its columns."""
    classes: Literal["auto", "multiclass", "binary"] = "auto"
    """auto takes the grades that the label file has; multiclass wants every grade of its scale; binary is the lower two grades
    against the upper two."""
    include_class_5: bool = False
    """Use class 5 of a label file, which is no density grade, as a class of its own; else its images are left out and counted."""
    skip_unknown_labels: bool = False
    """Leave out and count images whose label is no known value; else that is an error."""
    published_split: bool = False
    """Use the label file's own split column: a single split validates on its validation rows (its test rows where there are
    none), folds are made without its test rows."""
    views: Annotated[Literal["standard", "all"] | tuple[str, ...], BeforeValidator(_views)] = "standard"
    """standard leaves out spot and magnified views, all takes every view; or those of a list, such as CC,MLO."""
    include_for_processing: bool = False
    """Use raw images (FOR PROCESSING), whose intensities follow another law; else they are left out and counted."""
    max_rejected: float = Field(0.05, ge=0, le=1)
    """Largest share of the images that may be broken; more is an error."""
    pseudonyms: bool = False
    """Replace patients, accession numbers and paths by keyed hashes in every file; the key stays in the output folder."""

    def selection(self) -> SelectionConfig:
        """Return this part of a larger configuration."""
        return part_of(self, SelectionConfig)


class PreprocessingConfig(Strict):
    """From stored pixels to the uint8 image that a network sees. All of it is part of the cache's key."""

    img_size: int = Field(512, ge=32, le=4096)
    """Side of the square image that the network sees, in pixels."""
    apply_window: bool = True
    """Apply the file's own VOI table or window (the first one) before anything else."""
    log_raw: bool = True
    """Take the logarithm of raw values (FOR PROCESSING), which are proportional to the X-rays; others follow it already."""
    invert_monochrome1: bool = True
    """Turn images over whose smallest value is meant to be white, so that dense tissue is bright in all of them."""
    rescale_low: float = Field(0.5, ge=0, lt=50)
    """Percentile of the breast's pixels that becomes 0."""
    rescale_high: float = Field(99.5, gt=50, le=100)
    """Percentile of the breast's pixels that becomes 255."""
    trim_border: bool = True
    """Cut off the bright frame that scanned films have."""
    crop_breast: bool = True
    """Cut to the bounding box of the largest bright region: the breast."""
    chest_wall_left: bool = True
    """Mirror images so that the chest wall is always on the left."""
    keep_aspect: bool = True
    """Keep the ratio of height and width, and fill the square with black; else the image is stretched to the square."""
    pad: Literal["right", "both"] = "right"
    """Which sides of an image that is higher than wide are filled up: with right the chest wall stays at the edge."""

    def preprocessing(self) -> PreprocessingConfig:
        """Return this part of a larger configuration."""
        return part_of(self, PreprocessingConfig)


NO_WEIGHTS_FILES = frozenset({"imagenet", "bundled", "none"})
"""What `weights` may say beside the path of a file."""

Arch = Annotated[str, Field(pattern=r"^[a-z0-9_.]+$")]


class BackboneConfig(Strict):
    """Which backbone, and what it starts from."""

    arch: Arch = "efficientnet_b0"
    """A timm model, such as efficientnet_b0, resnet50, tf_efficientnet_lite0."""
    weights: str = "imagenet"
    """imagenet (timm's, from the hub or its local cache), bundled (in the installation, for tf_efficientnet_lite0), none,
    or a .safetensors or .pth file."""


class ModelConfig(BackboneConfig):
    """The network."""

    freeze: Literal["none", "backbone", "all-but-last-block"] = "none"
    """Which part of the backbone keeps its weights and its batch-norm statistics."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping a feature before the head."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Probability of skipping a residual branch (stochastic depth), for networks that have it."""
    embeddings_dir: Path | None = None
    """Folder that `mammography embed` wrote: its vectors are concatenated with the network's own features before the head."""


class OptimisationConfig(Strict):
    """How the weights change."""

    epochs: int = Field(20, ge=1)
    """Passes over the training images of a fold."""
    batch_size: int = Field(16, ge=2)
    """Images a step. The last batch of an epoch may hold one image more, never one alone."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """AdamW decouples the weight decay from the gradient; Adam adds it to it."""
    lr: float = Field(1e-4, gt=0)
    """Learning rate of the head."""
    backbone_lr: float = Field(1e-5, gt=0)
    """Learning rate of the backbone."""
    weight_decay: float | None = Field(None, ge=0)
    """Weight decay; when absent the optimiser's own: adamw 0.01, adam 0."""
    warmup_epochs: int = Field(0, ge=0)
    """Epochs of linear warm-up, counted in `epochs`; cosine to zero after them."""
    plateau_scheduler: bool = False
    """In place of the cosine: keep the rates, and lower them when the validation objective has not risen for a while."""
    plateau_patience: int = Field(3, ge=0)
    """Epochs without a better validation objective that the plateau scheduler lets pass; one more lowers the rates."""
    plateau_factor: float = Field(0.5, gt=0, lt=1)
    """What the plateau scheduler multiplies the rates with."""
    fused_optim: bool = False
    """One kernel for the optimiser's whole step, where the device has it."""
    grad_clip: float = Field(1.0, ge=0)
    """Largest norm of the gradient; 0 is off."""
    loss: Literal["cross-entropy", "ordinal"] = "cross-entropy"
    """ordinal gives neighbouring grades a share of the target, since the grades are ordered."""
    ordinal_spread: float = Field(0.5, gt=0)
    """Standard deviation, in grades, of the ordinal target around the true grade; 0.5 gives a neighbour 0.14 times its share."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread evenly over all classes."""
    early_stop_patience: int = Field(0, ge=0)
    """Epochs without a better one after which a fold stops, counted from the end of the warm-up; 0 is off."""

    @property
    def weight_decay_resolved(self) -> float:
        """The weight decay that is used: the one given, else the optimiser's own."""
        if self.weight_decay is not None:
            return self.weight_decay
        return 0.01 if self.optimizer == "adamw" else 0.0

    @model_validator(mode="after")
    def _warmup_leaves_an_epoch(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be smaller than epochs ({self.epochs})")
        return self


class BalanceConfig(Strict):
    """What is done about classes of unequal size. Never both at once: that would balance twice."""

    class_weights: ClassWeights = "none"
    """Weights of the classes in the loss: none, auto (total / (classes * count)), or one number a class: w0,w1,..."""
    sampler: Literal["auto", "weighted", "none"] = "auto"
    """weighted draws every class equally often and turns class weights off; auto does so when the largest class is at least
    3 times the smallest and no class weights were asked for."""


class AugmentationConfig(Strict):
    """Random changes of training images, never of validation images."""

    train_augment: bool = False
    """Augment training images, each transform with the strength given by its own field."""
    augment_flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    augment_rotation: float = Field(10.0, ge=0, le=180)
    """Largest rotation, in degrees to either side."""
    augment_shift: float = Field(0.05, ge=0, lt=1)
    """Largest shift, as a share of the image's side, in each direction."""
    augment_scale: float = Field(0.1, ge=0, lt=1)
    """Largest change of size: 0.1 draws from 0.9 to 1.1 times."""
    augment_brightness: float = Field(0.1, ge=0, le=1)
    """Largest change of brightness: 0.1 multiplies by 0.9 to 1.1."""
    augment_contrast: float = Field(0.1, ge=0, le=1)
    """Largest change of contrast: 0.1 multiplies the distance from the image's mean by 0.9 to 1.1."""


class PrecisionConfig(Strict):
    """Numbers and repeatability."""

    amp: Literal["auto", "on", "off"] = "auto"
    """Automatic mixed precision; auto is on for CUDA and off elsewhere."""
    amp_dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    """Type used by mixed precision; auto is bfloat16 where it is native, else float16 with a gradient scaler."""
    deterministic: bool = True
    """Deterministic algorithms only, so that the same run gives the same bits."""


class LoadingConfig(Strict):
    """How images reach the device. Once what is chosen for a run is settled, no number depends on it."""

    cache_mode: Literal["disk", "memory", "none"] = "disk"
    """Where decoded images are kept: disk is one array that all processes share, memory is this process's own, none decodes
    each image again whenever it is needed."""
    num_workers: int | None = Field(None, ge=0)
    """Processes that read ahead, where images are streamed because the array does not fit on the device; when absent, by
    the number of cores."""
    prefetch_factor: int | None = Field(None, ge=1)
    """Batches that each of them reads ahead; when absent, by the number of batches in an epoch."""
    persistent_workers: bool = False
    """Keep them from epoch to epoch."""
    loader_heuristics: bool = True
    """Choose what no flag says: the batch size by the device's free memory, micro-batches where a batch does not fit, and how
    far to read ahead. Off takes what was asked for."""


class FilesConfig(Strict):
    """Files beyond those that every fold leaves."""

    save_every_epoch: bool = False
    """Keep a checkpoint of each epoch, as checkpoint_epoch_N.pth."""
    export_embeddings: bool = False
    """Write the features of the validation images before the head, at the best epoch, as embeddings_val.npy and .csv."""


class TrainConfig(
    FilesConfig,
    LoadingConfig,
    PrecisionConfig,
    AugmentationConfig,
    BalanceConfig,
    OptimisationConfig,
    ModelConfig,
    PreprocessingConfig,
):
    """What a trial is. With the data, the folds and the seeds it determines the result."""


CHANGES_NO_NUMBER = frozenset({*LoadingConfig.model_fields, *FilesConfig.model_fields})
"""Fields of a trial that may differ between its attempts and cannot be searched over."""


class DataPlaces(Strict):
    """Where the archive is."""

    csv: Path
    """Label file: see `format`."""
    dicom_root: Path
    """Folder of the images."""


class ArchiveConfig(SelectionConfig, DataPlaces):
    """Where a command by hand finds its data, and what it takes of them."""

    cache_dir: Path | None = None
    """Where decoded data sets are kept; when absent, `cache` in the output folder."""


class ByHandConfig(ArchiveConfig):
    """A command by hand that computes something."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto, cpu, cuda or cuda:N."""
    threads: int | None = Field(None, ge=1)
    """Processor threads of a step. They decide the last bits of the result and are recorded; when absent, all cores."""


class CheckConfig(PreprocessingConfig, ArchiveConfig):
    """One look at an archive: what would be used of it, and how it would look."""

    cache_mode: Literal["disk", "memory", "none"] = "disk"
    """Where decoded images are kept; with disk a run with the same settings finds them."""
    cv_folds: int | None = Field(None, ge=2)
    """Also see whether so many folds can be made of it."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Seed of these folds."""


class RunConfig(TrainConfig, ByHandConfig):
    """One run of `train-density`: what is trained, on what, and where the files go."""

    micro_batch: int | None = Field(None, ge=2)
    """Images that go through the network at once; a larger batch is split. When absent, the batch, or what fits of it."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Seed of the folds, the network's start and everything random."""
    trial: int = Field(0, ge=0)
    """Number of the trial whose training seeds are used: with a study's seed, folds and fields, its result comes out again."""
    val_frac: float = Field(0.2, gt=0, lt=1)
    """Share of the patients in the validation set when there are no folds."""
    cv_folds: int | None = Field(None, ge=2)
    """Number of cross-validation folds; when absent, one split by val_frac."""
    cv_outdir: Path | None = None
    """Folder of a cross-validation; must be empty or new."""
    outdir: Path | None = None
    """Folder in which a run takes its own `results_<n>`; when absent, `train` in the output folder."""

    @model_validator(mode="after")
    def _cv_outdir_needs_folds(self) -> Self:
        if self.cv_outdir is not None and self.cv_folds is None:
            raise ValueError("cv_outdir needs cv_folds")
        return self

    def with_absolute_paths(self) -> Self:
        """Return the same run with paths that hold in every working directory."""
        paths: dict[str, Any] = {name: value.absolute() for name, value in self if isinstance(value, Path)}
        if self.weights not in NO_WEIGHTS_FILES:
            paths["weights"] = str(Path(self.weights).absolute())
        return self.model_copy(update=paths)

    def train_config(self) -> TrainConfig:
        """Return what is trained, without places."""
        return part_of(self, TrainConfig)


class EmbedConfig(BackboneConfig, PreprocessingConfig, ByHandConfig):
    """One run of `embed`: which backbone's features, of what, and where they go."""

    arch: Arch = "resnet50"
    """A timm model, such as efficientnet_b0, resnet50, tf_efficientnet_lite0."""
    outdir: Path
    """Folder of features.npy and metadata.csv; other embeddings in it are never overwritten."""
    batch_size: int = Field(32, ge=1)
    """Images that go through the network at once."""

    def train_config(self) -> TrainConfig:
        """Return the configuration of a network with this backbone, for these images."""
        names = (*BackboneConfig.model_fields, *PreprocessingConfig.model_fields)
        return TrainConfig.model_validate({name: getattr(self, name) for name in names})
