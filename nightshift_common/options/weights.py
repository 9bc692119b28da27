"""Options of weights from elsewhere: what `import_weights`, `torch2onnx` and the form of `convert_model` ask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from nightshift_common.names import GroupName
from nightshift_common.options.base import Options

Family = Literal["classifier", "vit", "head", "torchscript", "factory", "onnx", "ultralytics"]
FAMILIES: tuple[Family, ...] = get_args(Family)
Activation = Literal["none", "sigmoid", "softmax"]
HiddenActivation = Literal["none", "relu", "gelu", "gelu_tanh", "leaky_relu", "silu", "tanh"]
HIDDEN_ACTIVATIONS: tuple[HiddenActivation, ...] = get_args(HiddenActivation)
Resize = Literal["letterbox", "stretch"]
Border = Literal["constant", "wrap", "reflect", "replicate"]
RUNTIMES: dict[Family, str] = {"ultralytics": "detection"}
"""Family -> the runtime that its weights need; the others need `jobs`. Ultralytics is AGPL, so it has its own."""
_TEXT = r"\S"
_OPTIONAL_TEXT = r"^$|\S"
Side = Annotated[int, Field(ge=8, le=4096)]
"""Of an input picture, pixels."""
Size = Annotated[int, Field(ge=1, le=2**20)]
"""Of one dimension of an input that is no picture."""
ARCHIVES = (".zip",)
"""What names of archives of weights and what belongs to them end with."""


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
    over an embedding; torchscript: an archive of TorchScript; factory: a state_dict of what a function builds; onnx: a
    graph of your own, served as it is; ultralytics: a detector or segmenter, as Ultralytics saves it"""
    architecture: str | None = Field(None, pattern=_TEXT, title="Architecture")
    """for a classifier (timm's own, or of backbone and fc) or a vit: timm's name, say efficientnet_b0.ra_in1k or
    vit_base_patch16_224"""
    factory: str | None = Field(None, pattern=r"^[\w.]+:\w+$", title="Factory")
    """for a factory: module:function that builds the model"""
    img_size: tuple[Side, Side] = Field((224, 224), title="Input size")
    """height and width of the input picture, pixels"""
    channels: Annotated[Literal[1, 3], BeforeValidator(_number)] = Field(3, title="Channels")
    """3: RGB; 1: gray"""
    input_shape: tuple[Size, ...] | None = Field(None, min_length=1, max_length=5, title="Input shape")
    """sizes of one input without the batch, of a model that takes no pictures, say [1,240,480,480] for volumes; then
    arrays verify it in the place of pictures"""
    output_names: str = Field("", pattern=_OPTIONAL_TEXT, title="Outputs")
    """names of the outputs in their order, separated by commas; empty: logits, probabilities or embedding, and
    output_1, output_2 for those after the first"""
    activation: Activation = Field("none", title="Activation")
    """for a head: what is put behind it; for onnx: what the graph has behind it; outputs are then probabilities"""
    hidden_activation: HiddenActivation | None = Field(None, title="Hidden activation")
    """for a head of several linear layers: what its own code has between them, which weights do not tell"""
    negative_slope: float = Field(0.01, ge=0, lt=1, title="Negative slope")
    """of a leaky_relu"""

    @model_validator(mode="after")
    def _family_has_what_it_needs(self) -> Self:
        needs = {"classifier": "architecture", "vit": "architecture", "factory": "factory"}
        if (name := needs.get(self.family)) and getattr(self, name) is None:
            raise ValueError(f"family {self.family} needs {name}")
        names = self.named_outputs
        if len(set(names)) < len(names):
            raise ValueError(f"output_names has a name twice: {', '.join(names)}")
        if names and self.family in ("head", "ultralytics", "onnx"):
            raise ValueError(f"family {self.family} takes no output_names: its outputs have their own names")
        return self

    @property
    def named_outputs(self) -> list[str]:
        """The names in `output_names`."""
        return [name.strip() for name in self.output_names.split(",") if name.strip()]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of one input without the batch; of a head its weights tell them."""
        return self.input_shape or (self.channels, *self.img_size)

    def take_pictures(self) -> None:
        """Read an `input_shape` that is one of a picture as `channels` and `img_size`.

        Raises:
            ValueError: it is none of a picture.
        """
        if self.input_shape is None:
            return
        if len(self.input_shape) != 3 or self.input_shape[0] not in (1, 3):
            raise ValueError(
                f"input_shape {list(self.input_shape)} is none of pictures: that is [1 or 3, height, width]"
            )
        self.channels, *sides = self.input_shape  # type: ignore[assignment]
        self.img_size, self.input_shape = (sides[0], sides[1]), None

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
    labels: str = Field("", pattern=_OPTIONAL_TEXT, title="Classes")
    """their names in the order of the first output, separated by commas; none for a vit; empty takes those of the file,
    where it has some: of ultralytics, and num2label.txt in an archive"""
    pictures: Path | None = Field(None, title="Folder of pictures")
    """real pictures to verify with, on the worker; they become a snapshot"""
    snapshot_id: str | None = Field(None, pattern="^[0-9a-f]{16}$", title="Snapshot")
    """or: a snapshot of the group, whose golden pictures verify (16 hex digits)"""
    embeddings: str | None = Field(None, pattern=_TEXT, title="Embeddings")
    """for a head: real ones to verify with, .npy, float32 [n, features]; where, as for the weights"""
    inputs: str | None = Field(None, pattern=_TEXT, title="Inputs")
    """for a model with an input shape, or onnx without pictures: real inputs to verify with, .npy [n, ...] or .npz with
    an array inputs; where, as for the weights; without them random numbers are used, and the verdict says so"""
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
        has_pictures = self.pictures is not None or self.snapshot_id is not None
        if self.family == "head":
            if self.embeddings is None or has_pictures or self.inputs is not None:
                raise ValueError("family head takes embeddings: give embeddings, no pictures and no snapshot_id")
        elif self.embeddings is not None:
            raise ValueError("embeddings are for family head: give pictures or snapshot_id, or inputs")
        elif has_pictures:
            if self.pictures is not None and self.snapshot_id is not None:
                raise ValueError("give pictures or snapshot_id, not both")
            if self.inputs is not None:
                raise ValueError("inputs are for a model that takes no pictures: give the one or the other")
            self.take_pictures()
        elif self.input_shape is None and self.family != "onnx":
            raise ValueError("give pictures or snapshot_id: a model of pictures is verified with real ones")
        elif self.family == "ultralytics":
            raise ValueError("family ultralytics takes pictures: give pictures or snapshot_id")
        if self.class_names and self.family == "vit":
            raise ValueError("give no labels: family vit has none, it gives an embedding")
        needs_classes = self.family == "head" or (self.takes_pictures and self.family != "vit")
        if needs_classes and not self.class_names and not self._may_tell_classes:
            raise ValueError("give labels, the names of the classes; family vit has none: it gives an embedding")
        return self

    @property
    def takes_pictures(self) -> bool:
        """Whether the model takes pictures, and is verified with some."""
        return self.pictures is not None or self.snapshot_id is not None

    @property
    def _may_tell_classes(self) -> bool:
        """Whether the file of weights may have the names of the classes, or the model may have none."""
        return self.family in ("ultralytics", "torchscript", "onnx") or self.weights.lower().endswith(ARCHIVES)

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
