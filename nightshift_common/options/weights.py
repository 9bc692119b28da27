"""Options of weights from elsewhere: what `import_weights`, `torch2onnx` and the form of `convert_model` ask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from nightshift_common.names import GroupName
from nightshift_common.options.base import Options

Family = Literal["classifier", "vit", "head", "torchscript", "factory", "ultralytics"]
FAMILIES: tuple[Family, ...] = get_args(Family)
Activation = Literal["none", "sigmoid", "softmax"]
HiddenActivation = Literal["none", "relu", "gelu", "gelu_tanh", "leaky_relu", "silu", "tanh"]
HIDDEN_ACTIVATIONS: tuple[HiddenActivation, ...] = get_args(HiddenActivation)
Resize = Literal["letterbox", "stretch"]
Border = Literal["constant", "wrap", "reflect", "replicate"]
RUNTIMES: dict[Family, str] = {"ultralytics": "detection"}
"""Family -> the runtime that its weights need; the others need `jobs`. Ultralytics is AGPL, so it has its own."""
_TEXT = r"\S"
Side = Annotated[int, Field(ge=8, le=4096)]
"""Of an input picture, pixels."""


def _number(text: object) -> object:
    """Return a command line's digits as a number: pydantic does not read them so where only some numbers are valid."""
    return int(text) if isinstance(text, str) and text.isdecimal() else text


class SuppressionThresholds(Options):
    """Which boxes of a detector are left."""

    confidence_threshold: float = Field(0.25, ge=0, lt=1, title="Confidence threshold")
    """with NMS: boxes below it are left out"""
    iou_threshold: float = Field(0.7, gt=0, le=1, title="IoU threshold")
    """with NMS: a box that overlaps a better one of its class by more (intersection over union) goes"""
    max_detections: int = Field(300, ge=1, le=3840, title="Max detections")
    """with NMS: boxes a picture, at most; 3840 is the limit of TensorRT's TopK"""


class SuppressionOptions(SuppressionThresholds):
    """Non-maximum suppression inside the graph of a detector."""

    nms: bool = Field(False, title="NMS in the graph")
    """for ultralytics: non-maximum suppression inside the graph; without it the raw outputs are served"""


class SourceOptions(SuppressionOptions):
    """Which model a file of weights belongs to."""

    family: Family = Field(title="Family")
    """classifier: a state_dict of backbone and fc; vit: of an encoder, which gives an embedding; head: of linear layers
    over an embedding; torchscript: an archive of TorchScript; factory: a state_dict of what a function builds;
    ultralytics: a detector or segmenter, as Ultralytics saves it"""
    architecture: str | None = Field(None, pattern=_TEXT, title="Architecture")
    """for a classifier or vit: timm's name, say efficientnet_b0.ra_in1k or vit_base_patch16_224"""
    factory: str | None = Field(None, pattern=r"^[\w.]+:\w+$", title="Factory")
    """for a factory: module:function that builds the model"""
    img_size: tuple[Side, Side] = Field((224, 224), title="Input size")
    """height and width of the input picture, pixels"""
    channels: Annotated[Literal[1, 3], BeforeValidator(_number)] = Field(3, title="Channels")
    """3: RGB; 1: gray"""
    activation: Activation = Field("none", title="Activation")
    """for a head: what is put behind it; its outputs are then probabilities"""
    hidden_activation: HiddenActivation | None = Field(None, title="Hidden activation")
    """for a head of several linear layers: what its own code has between them, which weights do not tell"""
    negative_slope: float = Field(0.01, ge=0, lt=1, title="Negative slope")
    """of a leaky_relu"""

    @model_validator(mode="after")
    def _family_has_what_it_needs(self) -> Self:
        needs = {"classifier": "architecture", "vit": "architecture", "factory": "factory"}
        if (name := needs.get(self.family)) and getattr(self, name) is None:
            raise ValueError(f"family {self.family} needs {name}")
        return self

    @property
    def modules(self) -> list[str]:
        """The modules of one's own that building the model takes."""
        return [self.factory.partition(":")[0]] if self.factory else []

    @property
    def source(self) -> SourceOptions:
        """These options alone, of a class that has more."""
        return SourceOptions.model_validate(self.model_dump(include=set(SourceOptions.model_fields)))


class ImportOptions(SourceOptions):
    """Weights that become an experiment: also their classes, how a picture is prepared, and what verifies them."""

    weights: str = Field(pattern=_TEXT, title="Weights")
    """a file (/mnt/weights/best.pth), a key in the bottle (incoming/best.pth), or s3://bucket/best.pth"""
    group: GroupName = Field("converted", title="Group")
    """the group that the model is for"""
    labels: str = Field("", pattern=r"^$|\S", title="Classes")
    """their names in the order of the outputs, separated by commas; none for a vit; for ultralytics: empty takes those
    of the file"""
    pictures: Path | None = Field(None, title="Folder of pictures")
    """real pictures to verify with, on the worker; they become a snapshot"""
    snapshot_id: str | None = Field(None, pattern="^[0-9a-f]{16}$", title="Snapshot")
    """or: a snapshot of the group, whose golden pictures verify (16 hex digits)"""
    embeddings: str | None = Field(None, pattern=_TEXT, title="Embeddings")
    """for a head: real ones to verify with, .npy, float32 [n, features]; where, as for the weights"""
    expected: str | None = Field(None, pattern=_TEXT, title="Expected outputs")
    """what your own code gives for the same pictures (by path) or embeddings, .npy [n, ...], or .npz of outputs and
    inputs; the graph is held to it; where, as for the weights"""
    resize: Resize = Field("letterbox", title="Resizing")
    """letterbox: the longer side fits, the rest is padded; stretch: both sides fit"""
    border: Border = Field("constant", title="Padding")
    """what a letterboxed picture is padded with, as the model was trained: constant: black; wrap: the opposite side;
    reflect: the picture mirrored at its edge, whose pixels are not repeated; replicate: the edge's pixels"""
    mean: tuple[float, ...] = Field((0.485, 0.456, 0.406), title="Mean")
    """per channel, of values in 0..1, as the model was trained; here ImageNet's"""
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field((0.229, 0.224, 0.225), title="Deviation")
    """per channel, of values in 0..1, as the model was trained; here ImageNet's"""

    @model_validator(mode="after")
    def _has_real_inputs_and_classes(self) -> Self:
        if self.family == "head":
            if self.embeddings is None or self.pictures is not None or self.snapshot_id is not None:
                raise ValueError("family head takes embeddings: give embeddings, no pictures and no snapshot_id")
        elif self.embeddings is not None or (self.pictures is None) == (self.snapshot_id is None):
            raise ValueError("give pictures or snapshot_id: a model of pictures is verified with real ones")
        named = self.family != "vit" if self.family != "ultralytics" else bool(self.class_names)
        if bool(self.class_names) != named:
            raise ValueError("give labels, the names of the classes; family vit has none: it gives an embedding")
        return self

    @property
    def class_names(self) -> list[str]:
        """The names in `labels`."""
        return [label.strip() for label in self.labels.split(",") if label.strip()]


class InputSizeOptions(Options):
    """`img_size` as a form asks it."""

    height: Side = Field(224, title="Height")
    """of the input, pixels"""
    width: Side = Field(224, title="Width")
    """of the input, pixels"""
