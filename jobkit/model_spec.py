"""What a model needs besides its weights: classes and preprocessing. It travels as `model.json` and in the ONNX file.

Training writes it, and every later step (evaluation, verification, packaging, smoke tests, clients) prepares
pictures by it, so that a model never sees inputs that differ from those it was validated on.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from jobkit.errors import DataValidationError
from nightshift_common.options.training import FlipTta
from nightshift_common.options.weights import Border, Resize, SuppressionOptions, SuppressionThresholds
from nightshift_common.picture_preparation import decode, fit, normalize, resized

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["fit", "normalize", "resized"]  # what training does by itself with a picture that it has decoded
SPEC_FILE = "model.json"


class Preprocessing(BaseModel):
    """How a picture becomes the model's input: decode, resize, pad, scale to 0..1, normalize, CHW float32."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    height: int = Field(gt=0, description="pixels")
    width: int = Field(gt=0, description="pixels")
    channels: Literal[1, 3] = Field(3, description="3: RGB; 1: gray")
    resize: Resize = Field(
        "letterbox", description="letterbox: the longer side fits, the rest is padded evenly; stretch: both sides fit"
    )
    border: Border = Field(
        "constant",
        description="what the padding shows: constant: pad_value; wrap: the opposite side of the picture; reflect: the "
        "picture mirrored at its edge, whose pixels are not repeated; replicate: the edge's pixels",
    )
    pad_value: int = Field(0, ge=0, le=255, description="gray value of a constant border")
    mean: tuple[float, ...] = Field((0.485, 0.456, 0.406), description="per channel, of values in 0..1 (ImageNet)")
    std: tuple[float, ...] = Field((0.229, 0.224, 0.225), description="per channel, of values in 0..1 (ImageNet)")


def per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return a mean or a deviation for `channels`: of three colors for gray pictures their average."""
    return (sum(values) / 3,) if channels == 1 and len(values) == 3 else values


Output = Literal["logits", "probabilities", "embedding"]
INPUT = "input"
UNKNOWN_LICENSE = "unknown"


class WeightsOrigin(BaseModel):
    """The weights that a training started from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="timm's name with its tag; of other weights what the configuration calls them")
    source: str = Field(description="where they are from: an address, a repository of the hub, a file")
    license: str = Field(UNKNOWN_LICENSE, description="as the publisher says it; unknown where nobody does")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the file")


class Calibration(BaseModel):
    """How the confidence of a classifier was brought to what it is right in: temperature scaling (Guo et al. 2017)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(gt=0, description="the logits are divided by it; 1 where none could be fitted")
    not_fitted: str | None = Field(None, description="why none could be fitted")
    pictures: int = Field(ge=0, description="validation pictures that it was fitted on")
    nll_before: float = Field(description="negative log-likelihood on them at a temperature of 1, nats a picture")
    nll_after: float = Field(description="the same at this temperature")
    ece_before: float = Field(description="expected calibration error on them at a temperature of 1")
    ece_after: float = Field(description="the same at this temperature")


class OutputTensor(BaseModel):
    """One output of a model, float32 [N, *shape]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    shape: tuple[int | None, ...] = Field(description="without the batch; null: a free size")


class _Interface(BaseModel):
    """What models of pictures and of arrays have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: str
    architecture: str = Field(description="timm model name, or the family")
    labels: list[str] = Field(description="class name of each value of the first output; none for an embedding")
    output: Output = Field("logits", description="what the first output is, and its name where `outputs` is empty")
    input_name: str = INPUT
    outputs: list[OutputTensor] = Field([], description="all, where there are several or one has another name")
    batch: int | None = Field(None, description="the one batch size that it takes; null: any")


class ModelSpec(_Interface):
    """The interface of a model of pictures: `input` float32 [N, C, H, W] in, `<output>` float32 [N, ...] out."""

    arguments: dict[str, Any] = Field({}, description="of the architecture, beside timm's defaults")
    initial_weights: WeightsOrigin | None = Field(None, description="what its training started from; none: random")
    preprocessing: Preprocessing
    flip_tta: FlipTta = Field(
        "off", description="the output is the mean over the picture and these mirror images of it; inside the graph"
    )
    calibration: Calibration | None = Field(
        None, description="by what the logits are divided, inside the graph; None: nobody asked for it"
    )
    multi_label: bool = Field(
        False, description="a picture may show several classes, or none: each has a probability of its own (sigmoid)"
    )
    snapshot_id: str | None = Field(None, description="what it was trained on; None outside a snapshot")

    @model_validator(mode="after")
    def _several_labels_have_probabilities(self) -> Self:
        if self.multi_label and (self.output != "probabilities" or self.calibration is not None):
            raise ValueError("a model with multi_label gives probabilities, and is not calibrated by a temperature")
        return self

    @property
    def temperature(self) -> float:
        """What the logits are divided by; 1: nothing."""
        return 1.0 if self.calibration is None else self.calibration.temperature


class NonMaxSuppression(SuppressionThresholds):
    """How a detector's graph suppresses boxes that better ones cover."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _names_of_earlier_versions(cls, values: Any) -> Any:
        return renamed(values) if isinstance(values, dict) else values

    @classmethod
    def of(cls, options: SuppressionOptions) -> NonMaxSuppression | None:
        """Return what the options ask for; None: no suppression inside the graph."""
        return cls(**options.model_dump(include=set(cls.model_fields))) if options.nms else None


def renamed(values: dict[str, Any]) -> dict[str, Any]:
    """Return values with thresholds that earlier versions called otherwise under their names."""
    names = {"score": "confidence_threshold", "iou": "iou_threshold"}
    return {names.get(name, name): value for name, value in values.items()}


class HeadSpec(BaseModel):
    """The interface of a head. Input `input`: float32 [N, features]; output `<output>`: float32 [N, classes]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: str
    architecture: str
    labels: list[str] = Field(description="class name of each output")
    output: Output = "logits"
    features: int = Field(gt=0, description="length of the embedding that it takes")
    snapshot_id: str | None = None


class ArraySpec(_Interface):
    """The interface of a model of other inputs than pictures: `input` float32 [N, *shape], outputs float32 [N, ...]."""

    shape: tuple[int | None, ...] = Field(description="sizes of one input without the batch; null: a free size")
    snapshot_id: str | None = None


class DetectorSpec(BaseModel):
    """The interface of a detector. Input `input`: float32 [N, 3, H, W]; outputs: see `nightshift_common/boxes.py`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: str
    architecture: str
    labels: list[str] = Field(description="class name of each score")
    task: Literal["detect", "segment"] = Field(description="segment: with coefficients and prototypes of masks")
    preprocessing: Preprocessing
    suppression: NonMaxSuppression | None = Field(
        None, description="non-maximum suppression inside the graph; none: raw"
    )
    confidence_threshold: float | None = Field(
        None, ge=0, le=1, description="objects with a lower confidence do not count: best F1 on the validation pictures"
    )
    snapshot_id: str | None = None

    @property
    def output(self) -> str:
        """The first output."""
        return "raw" if self.suppression is None else "detections"


Spec = ModelSpec | HeadSpec | ArraySpec | DetectorSpec
_SPEC: TypeAdapter[Spec] = TypeAdapter(Spec)


def input_shape(spec: Spec) -> tuple[int, ...]:
    """Return the shape of one input: [C, H, W] of a picture, or [features]; a free size of arrays counts as 1."""
    if isinstance(spec, HeadSpec):
        return (spec.features,)
    if isinstance(spec, ArraySpec):
        return tuple(size or 1 for size in spec.shape)
    how = spec.preprocessing
    return how.channels, how.height, how.width


def output_names(spec: Spec) -> list[str]:
    """Return the names of the outputs, in their order; of a detector the first one's."""
    if isinstance(spec, HeadSpec | DetectorSpec) or not spec.outputs:
        return [spec.output]
    return [tensor.name for tensor in spec.outputs]


def judged_as(spec: Spec) -> str:
    """Return what the first output is compared as: `multi_label` where a picture has several, else `spec.output`."""
    return "multi_label" if isinstance(spec, ModelSpec) and spec.multi_label else spec.output


def described_input(spec: Spec) -> dict[str, Any]:
    """Return what a client needs to know beside names: how a picture is prepared, or the length of an embedding."""
    if isinstance(spec, HeadSpec):
        return {"features": spec.features}
    if isinstance(spec, ArraySpec):
        return {"shape": list(spec.shape)}
    described: dict[str, Any] = {"preprocessing": spec.preprocessing.model_dump()}
    if isinstance(spec, ModelSpec):
        if spec.flip_tta != "off":
            described["flip_tta"] = spec.flip_tta
        if spec.multi_label:
            described["multi_label"] = True
        if spec.calibration is not None:
            described["calibration"] = spec.calibration.model_dump()
    if isinstance(spec, DetectorSpec):
        how = spec.suppression
        described |= {"task": spec.task, "suppression": None if how is None else how.model_dump()}
        if spec.confidence_threshold is not None:
            described["confidence_threshold"] = spec.confidence_threshold
    return described


def parse_spec(text: str | bytes, where: str) -> Spec:
    """Return a model spec from its JSON.

    Raises:
        DataValidationError: it is not valid; the message begins with `where` it was.
    """
    try:
        return _SPEC.validate_json(text)
    except ValidationError as error:
        raise DataValidationError(f"{where} is not valid: {error}") from error


def prepare(path: Path, how: Preprocessing) -> NDArray[np.float32]:
    """Return the picture at `path` as float32 [C, H, W].

    Raises:
        DataValidationError: the file is not a picture that can be decoded.
    """
    return normalize(read_picture(path, how), how)


def read_picture(path: Path, how: Preprocessing) -> NDArray[np.uint8]:
    """Return the picture at `path` decoded, resized and padded as uint8 [H, W, C]."""
    return picture_of(path.read_bytes(), how, str(path))


def picture_of(content: bytes, how: Preprocessing, name: str) -> NDArray[np.uint8]:
    """Return the encoded picture `content` as `read_picture` does; `name` is what a message calls it."""
    decoded = decode(content, how.channels)
    if decoded is None:
        raise DataValidationError(f"{name} is not a picture that can be decoded")
    return fit(decoded, how)
