"""Values of the configuration file that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel

from nightshift_common.yaml_file import Location, WrongValues
from training_jobs.classifier.transforms.color import CoarseDropout, PlanckianJitter, RgbShift
from training_jobs.classifier.transforms.fixed import LongestMaxSize, Normalize, PadIfNeeded, Resize, ToTensor

if TYPE_CHECKING:
    from training_jobs.classifier.config import Config, Dataset, Optimizer

RESERVED = {  # arguments of timm's that another key gives, or that the trainer gives itself
    "in_chans": "model.in_channels gives it",
    "drop_rate": "model.drop_rate gives it",
    "drop_path_rate": "model.drop_path_rate gives it",
    "pretrained": "model.pretrained gives it",
    "checkpoint_path": "model.load_from gives it",
    "num_classes": "the labels give it",
    **dict.fromkeys(
        ("model_name", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "features_only", "scriptable",
         "exportable", "no_jit", "out_indices", "pretrained_strict", "device", "dtype"),
        "the trainer gives it",
    ),
}  # fmt: skip
NO_TEMPERATURE = (
    "it is defined for classes of which a picture has one: not with criterion.type binary_cross_entropy; valid: false"
)
M = TypeVar("M", bound=BaseModel)
Problems = Iterator[tuple[Location, str]]


def none(section: M, problems: Problems) -> M:
    """Return `section` if there are no problems; raise `WrongValues` with all of them otherwise."""
    if found := list(problems):
        raise WrongValues(found)
    return section


def dataset(section: Dataset) -> Problems:
    """Yield what is wrong between the keys of `dataset`."""
    steps: list[tuple[str, int, BaseModel]] = [("pre_transforms", i, s) for i, s in enumerate(section.pre_transforms)]
    steps += [("post_transforms", i, step) for i, step in enumerate(section.post_transforms)]
    geometry = [step.type for _, _, step in steps if isinstance(step, LongestMaxSize | PadIfNeeded | Resize)]
    if geometry not in ([], ["resize"], ["longest_max_size", "pad_if_needed"]):
        yield (
            ("pre_transforms",),
            f"with post_transforms this resizes by {', '.join(geometry)}; valid: longest_max_size and then "
            "pad_if_needed, or resize alone, or nothing (then the picture is letterboxed)",
        )
    tail = [step.type for step in section.post_transforms if isinstance(step, Normalize | ToTensor)]
    if tail not in ([], ["normalize"], ["to_tensor"], ["normalize", "to_tensor"]):
        yield ("post_transforms",), f"this has {', '.join(tail)}; valid: normalize, then to_tensor, each once"
    for name, index, step in steps:
        for key in ("max_size", "min_height", "min_width", "height", "width"):
            value = getattr(step, key, None)
            if value not in (None, section.image_size):
                yield (name, index, key), f"it is {value}, but dataset.image_size is {section.image_size}"
    for name in ("train_augmentations", "val_augmentations"):
        for index, augmentation in enumerate(getattr(section, name)):
            if isinstance(augmentation, CoarseDropout):
                for key, text in _holes(augmentation, section.image_size):
                    yield (name, index, key), text


def _holes(holes: CoarseDropout, size: int) -> Iterator[tuple[str, str]]:
    for key in ("max_height", "max_width"):
        if (value := getattr(holes, key)) > size:
            yield key, f"it is {value:g}, larger than the picture (dataset.image_size is {size})"
    if holes.max_holes > size * size:
        yield "max_holes", f"it is {holes.max_holes}; the picture has only {size * size} pixels"


def optimizer(section: Optimizer) -> Problems:
    """Yield what is wrong between the keys of `optimizer`."""
    if section.lr_type == "two_lrs":
        for key in ("backbone_lr", "fc_lr"):
            if getattr(section, key) is None:
                yield ("lr_type",), f"two_lrs needs {key}"
        if section.lr is not None:
            yield ("lr",), "lr belongs to lr_type one_lr; two_lrs takes backbone_lr and fc_lr"
    else:
        for key in ("backbone_lr", "fc_lr"):
            if getattr(section, key) is not None:
                yield (key,), f"{key} belongs to lr_type two_lrs; one_lr takes lr"
    if not all(0 <= beta < 1 for beta in section.betas):
        yield ("betas",), f"they are {list(section.betas)}; valid: from 0 up to, not including, 1"


def everything(config: Config) -> Problems:
    """Yield what is wrong between sections."""
    data, model = config.dataset, config.model
    for index, step in enumerate(data.post_transforms):
        for key in ("mean", "std"):
            values = getattr(step, key, None)
            if values is not None and len(values) != model.in_channels:
                yield (
                    ("dataset", "post_transforms", index, key),
                    f"it has {len(values)} values, but model.in_channels is {model.in_channels}",
                )
    if model.in_channels == 1:
        yield from _color_only(data)
    if data.insert_background_p > 0 and config.directories.backgrounds is None:
        yield ("dataset", "insert_background_p"), "it is above 0, but directories.backgrounds is not set"
    if data.label_source in ("folders", "rotation") and config.directories.images is None:
        yield ("dataset", "label_source"), f"{data.label_source} needs directories.images"
    if data.label_source == "rotation" and model.n_classes not in (None, 4):
        yield ("model", "n_classes"), f"it is {model.n_classes}, but dataset.label_source rotation has 4 classes"
    if data.people_crops and data.label_source in ("folders", "rotation"):
        yield ("dataset", "people_crops"), f"it needs a snapshot; dataset.label_source is {data.label_source}"
    for name in model.arguments:
        if name in RESERVED:
            yield ("model", "arguments", name), f"it cannot stand here: {RESERVED[name]}"
    if config.criterion.type == "binary_cross_entropy":
        yield from _single_label_only(config)
    weights = config.criterion.class_weights
    if isinstance(weights, list) and model.n_classes not in (None, len(weights)):
        yield ("criterion", "class_weights"), f"it has {len(weights)} values, but model.n_classes is {model.n_classes}"


def _single_label_only(config: Config) -> Problems:
    data, kind = config.dataset, "criterion.type is binary_cross_entropy"
    if data.label_source in ("folders", "rotation"):
        text = f"it is {data.label_source}, where a picture has one label, but {kind}; valid: snapshot"
        yield ("dataset", "label_source"), text
    if data.data_loaders.sampling == "balanced":
        text = f"a picture with several labels cannot be drawn for one of them alone, and {kind}; valid: shuffle, with "
        yield ("dataset", "data_loaders", "sampling"), f"{text}criterion.class_weights"
    if config.inference.temperature_scaling:
        yield ("inference", "temperature_scaling"), NO_TEMPERATURE


def _color_only(data: Dataset) -> Problems:
    for name in ("train_augmentations", "val_augmentations"):
        for index, step in enumerate(getattr(data, name)):
            where: Location = ("dataset", name, index)
            if isinstance(step, RgbShift | PlanckianJitter):
                yield (*where, "type"), f"{step.type} changes colors, but model.in_channels is 1 (gray)"
            if isinstance(step, CoarseDropout) and isinstance(step.fill_value, list) and len(step.fill_value) > 1:
                yield (*where, "fill_value"), "it has a value for each channel, but model.in_channels is 1 (gray)"
