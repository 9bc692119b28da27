"""The classifier's configuration file: every key with its type, bounds, default and meaning."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from jobkit.errors import ConfigurationError
from jobkit.model_spec import Preprocessing
from nightshift_common.names import Name
from nightshift_common.options.data import MAX_SIDE, MaxSide
from nightshift_common.options.training import FlipTta, InferenceOptions
from nightshift_common.yaml_file import ConfigFileError, load
from training_jobs.classifier import config_checks
from training_jobs.classifier.section import Section
from training_jobs.classifier.transforms import AnyAugmentation, PostTransform, PreTransform
from training_jobs.classifier.transforms.fixed import LongestMaxSize, Normalize, PadIfNeeded, Resize, ToTensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Directories(Section):
    """Where things lie; relative paths start at the folder that the job runs in."""

    images: str | None = Field(None, description="the pictures; not used with a snapshot")
    backgrounds: str | None = Field(None, description="backgrounds for insert_background_p")
    models: str | None = Field(
        None, description="where model.load_from starts; experiments go here where there is no bottle"
    )


class Criterion(Section):
    """The loss."""

    type: Literal["cross_entropy", "focal", "binary_cross_entropy"] = Field(
        "cross_entropy",
        description="of soft targets where pictures are mixed; focal: what is right already counts less; "
        "binary_cross_entropy: each class by itself, for snapshots whose pictures may have several labels",
    )
    focal_gamma: float = Field(2.0, ge=0, le=10, description="of focal: a class of probability p counts (1 - p)^gamma")
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the target that is spread over all classes; of binary_cross_entropy over yes and no",
    )
    class_weights: Literal["balanced"] | list[Annotated[float, Field(gt=0)]] | None = Field(
        None,
        description="balanced: pictures / (classes x pictures of the class); or one weight a class, in label order; of "
        "binary_cross_entropy what a yes weighs against a no: balanced: pictures without the class / pictures with it",
    )


class DataLoaders(Section):
    """How pictures become batches."""

    train_batch_size: int = Field(32, gt=0, description="pictures a step; --batch overrides it")
    sampling: Literal["shuffle", "balanced"] = Field(
        "shuffle",
        description="balanced: an epoch draws as many pictures, with replacement, each class as often as any other; "
        "not with binary_cross_entropy",
    )
    val_batch_size: int = Field(64, gt=0, description="pictures a batch in validation")
    num_workers: int | None = Field(None, ge=0, le=64, description="processes that prepare pictures; default: by need")


class AugmentationSchedule(Section):
    """Probability that a picture is augmented at all.

    In epoch e of E it is `start_p + (end_p - start_p) * (e / (E - 1)) ** exponent_factor`.
    """

    start_p: float = Field(1.0, ge=0, le=1, description="in the first epoch")
    end_p: float = Field(1.0, ge=0, le=1, description="in the last epoch")
    exponent_factor: float = Field(1.0, gt=0, description="1: linear; above 1: late; below 1: early")

    def probability(self, epoch: int, epochs: int) -> float:
        """Return the probability in `epoch` (from 0) of `epochs`; 1.0 where there is only one epoch."""
        if epochs <= 1:
            return 1.0
        passed = math.pow(epoch / (epochs - 1), self.exponent_factor)
        return self.start_p + (self.end_p - self.start_p) * passed


class Dataset(Section):
    """Pictures, labels, and what happens to a picture on its way to the model."""

    label_source: Literal["snapshot", "folders", "rotation"] | None = Field(
        None, description="default: snapshot where --cat is given, else rotation (a page's quarter turns are its label)"
    )
    image_size: int = Field(224, ge=8, le=4096, description="height and width of the model's input, pixels")
    insert_background_p: float = Field(0.0, ge=0, le=1, description="probability of pasting a picture on a background")
    background_max_ratio: float = Field(
        1.0, ge=1, le=10, description="largest background, as a multiple of the picture"
    )
    data_fraction: float = Field(1.0, gt=0, le=1, description="part of the pictures that is used, for a quick try")
    people_crops: bool = Field(False, description="one example per person, cut out by its mask in PostgreSQL")
    val_part: float = Field(0.2, gt=0, lt=1, description="part kept for validation; a snapshot has its own split")
    max_side: MaxSide = Field(
        MAX_SIDE,
        description="a picture of a folder with a longer side is left out without decoding it, pixels; those of a "
        "snapshot are chosen when it is pulled",
    )
    data_loaders: DataLoaders = DataLoaders()
    pre_transforms: list[PreTransform] = Field(
        [LongestMaxSize(type="longest_max_size"), PadIfNeeded(type="pad_if_needed")], description="before augmentation"
    )
    train_augmentations: list[AnyAugmentation] = Field([], description="training only, in this order")
    val_augmentations: list[AnyAugmentation] = Field([], description="validation only: how robust is the model?")
    post_transforms: list[PostTransform] = Field(
        [Normalize(type="normalize"), ToTensor(type="to_tensor")], description="after augmentation"
    )
    augmentation_p_schedule: AugmentationSchedule = AugmentationSchedule()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        return config_checks.none(self, config_checks.dataset(self))


Argument = bool | int | float | str | list[int] | list[float] | list[bool]


class Model(Section):
    """Architecture and initial weights."""

    backbone_name: str = Field("efficientnet_b0.ra_in1k", min_length=1, description="a timm architecture")
    load_from: str | None = Field(
        None,
        description="checkpoint to fine-tune, relative to directories.models or the bottle: ours, timm's, Lightning's, "
        ".safetensors; wins over pretrained",
    )
    load_mismatched: bool = Field(False, description="accept a load_from some of whose layers do not fit")
    pretrained: bool = Field(
        False,
        description="start from timm's published weights: in directories.models, in weights/ of the bottle (where "
        "fetch_weights puts them), or in the hub's cache",
    )
    arguments: dict[str, Argument] = Field(
        {}, description="further arguments of the architecture, as timm.create_model takes them: {img_size: 256}"
    )
    drop_rate: float | None = Field(
        None, ge=0, lt=1, description="dropout before the classification layer; default: the architecture's"
    )
    drop_path_rate: float | None = Field(
        None, ge=0, lt=1, description="stochastic depth, of the last block; default: the architecture's"
    )
    in_channels: Literal[1, 3] = Field(3, description="3: RGB; 1: gray")
    n_classes: int | None = Field(None, ge=2, description="checked against the labels; default: as many as there are")


class Optimizer(Section):
    """Optimizer and learning rates."""

    type: Literal["adamw", "adamw_8bit", "adam", "sgd"] = Field(
        "adamw", description="adamw_8bit needs the package bitsandbytes; without a GPU it is adamw"
    )
    lr_type: Literal["one_lr", "two_lrs"] = Field(
        "one_lr", description="two_lrs: one rate for the backbone, one for the classification layer"
    )
    lr: float | None = Field(None, gt=0, description="highest rate of one_lr; default 1e-3")
    backbone_lr: float | None = Field(None, gt=0, description="highest rate of the backbone, two_lrs")
    fc_lr: float | None = Field(None, gt=0, description="highest rate of the classification layer, two_lrs")
    layer_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="each layer's rate is that of the one above it times this, the classification layer's stays; "
        "timm's layers",
    )
    weight_decay: float = Field(0.01, ge=0, description="decoupled for adamw; not applied to biases and norms")
    eps: float = Field(1e-8, gt=0, description="adam's epsilon")
    betas: tuple[float, float] = Field((0.9, 0.999), description="adam's betas; sgd takes the first as its momentum")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        return config_checks.none(self, config_checks.optimizer(self))


class Scheduler(Section):
    """OneCycle: up to the highest rate, then down."""

    anneal_strategy: Literal["cos", "linear"] = Field("cos", description="shape of both parts")
    div_factor: float = Field(25.0, ge=1, description="first rate = highest / div_factor")
    final_div_factor: float = Field(1e4, ge=1, description="last rate = first / final_div_factor")
    pct_start: float = Field(0.3, gt=0, lt=1, description="part of all steps spent going up")


class Mixing(Section):
    """Mixing of the pictures of a batch."""

    strategy: Literal["mixup", "cutmix"] | None = Field(
        None, description="mixup blends pictures, cutmix pastes a part of one into another"
    )
    p: float = Field(1.0, ge=0, le=1, description="probability of mixing a batch")
    alpha: float = Field(0.2, gt=0, description="of the beta distribution that the share is drawn from")


class Training(Section):
    """The training loop."""

    epochs: int = Field(10, ge=1, le=100_000, description="passes over the training set; --epochs overrides it")
    precision: Literal[16, 32, "bf16"] = Field(32, description="16 and bf16: mixed precision; 16 needs a GPU")
    accumulate_grad_batches: int = Field(1, ge=1, description="batches a weight update")
    frozen_epochs: int = Field(
        0,
        ge=0,
        description="first epochs, in which only the classification layer learns; no dropout, norms as loaded",
    )
    max_grad_norm: float | None = Field(None, gt=0, description="gradients are clipped to this norm")
    compile: bool = Field(False, description="torch.compile")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="validate and keep an average of the weights")
    save_checkpoints: bool = Field(True, description="false: only the final weights; a killed training starts anew")
    save_metrics: bool = Field(True, description="false: no csv_logs, no metrics per epoch in MLflow")
    best_by: Literal["macro_f1", "accuracy", "loss"] = Field("macro_f1", description="which epoch is the best")
    patience: int | None = Field(
        None, ge=1, description="early stopping: end after so many epochs without a better best_by; rates stay epochs'"
    )
    out_of_memory: Literal["stop", "accumulate"] = Field(
        "stop", description="accumulate: go on with a smaller batch, accumulated to the same size"
    )
    mixing: Mixing = Mixing()


class Inference(Section):
    """What the graph does beside the model itself: in TorchScript, in ONNX and so in evaluation and when served."""

    flip_tta: FlipTta = Field(
        "off",
        description="average the logits over the picture and its mirror image (both: its three); an answer, and "
        "validation, take twice (both: four times) as long; not with rotation, whose classes a mirror changes",
    )
    temperature_scaling: bool = Field(
        False,
        description="divide the logits by the temperature that makes the labels of the validation pictures likeliest "
        "(Guo et al. 2017), so that a confidence is the share that is right; the likeliest class stays the same; "
        "not with binary_cross_entropy",
    )


class Config(Section):
    """One training."""

    experiment_name: Name = Field("classifier", description="group without --cat")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="of everything random")
    directories: Directories = Directories()
    criterion: Criterion = Criterion()
    dataset: Dataset = Dataset()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    scheduler: Scheduler = Scheduler()
    training: Training = Training()
    inference: Inference = Inference()

    @property
    def pads_first(self) -> bool:
        """Whether pictures are padded before augmentation (pre_transforms) or after it (post_transforms)."""
        return not any(isinstance(step, PadIfNeeded) for step in self.dataset.post_transforms)

    @property
    def preprocessing(self) -> Preprocessing:
        """How validation and serving bring a picture to the model's input."""
        dataset, channels = self.dataset, self.model.in_channels
        steps = [*dataset.pre_transforms, *dataset.post_transforms]
        normalize = next((step for step in steps if isinstance(step, Normalize)), None)
        pad = next((step for step in steps if isinstance(step, PadIfNeeded)), None)
        mean, std = (0.0,) * channels, (1.0,) * channels
        if normalize is not None:
            scale = normalize.max_pixel_value / 255
            mean = tuple(normalize.mean or (IMAGENET_MEAN if channels == 3 else (0.5,)))
            std = tuple(normalize.std or (IMAGENET_STD if channels == 3 else (0.25,)))
            mean, std = tuple(value * scale for value in mean), tuple(value * scale for value in std)
        return Preprocessing(
            height=dataset.image_size,
            width=dataset.image_size,
            channels=channels,
            mean=mean,
            std=std,
            resize="stretch" if any(isinstance(step, Resize) for step in steps) else "letterbox",
            border=pad.border if pad else "constant",
            pad_value=pad.fill_value if pad else 0,
        )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        return config_checks.none(self, config_checks.everything(self))


def read_config(path: Path, epochs: int | None = None, batch: int | None = None) -> Config:
    """Return the configuration at `path`, with what the command line overrides.

    Raises:
        ConfigurationError: the file has errors; all are listed, each with its line.
    """
    try:
        config = load(path, Config)
    except ConfigFileError as error:
        raise ConfigurationError(str(error)) from error
    return overridden(config, epochs, batch)


def overridden(
    config: Config, epochs: int | None = None, batch: int | None = None, accumulate: int | None = None
) -> Config:
    """Return the configuration with those of epochs, batch size and accumulated batches that are given."""
    training, loaders = config.training, config.dataset.data_loaders
    training = training.model_copy(
        update={
            "epochs": epochs or training.epochs,
            "accumulate_grad_batches": accumulate or training.accumulate_grad_batches,
        }
    )
    loaders = loaders.model_copy(update={"train_batch_size": batch or loaders.train_batch_size})
    dataset = config.dataset.model_copy(update={"data_loaders": loaders})
    return config.model_copy(update={"training": training, "dataset": dataset})


def inferring(config: Config, options: InferenceOptions) -> Config:
    """Return the configuration with what `options` say that the graph does beside the model."""
    said = options.model_dump(include=set(InferenceOptions.model_fields), exclude_none=True)
    return config.model_copy(update={"inference": config.inference.model_copy(update=said)})
