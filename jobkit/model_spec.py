"""What a model needs besides its weights: classes and preprocessing. It travels as `model.json` and in the ONNX file.

Training writes it, and every later step (evaluation, verification, packaging, smoke tests, clients) prepares
pictures by it, so that a model never sees inputs that differ from those it was validated on.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from jobkit.errors import DataValidationError
from nightshift_common.options.training import FlipTta
from nightshift_common.options.weights import Border, Resize, SuppressionOptions, SuppressionThresholds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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


Output = Literal["logits", "probabilities", "embedding"]


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


class ModelSpec(BaseModel):
    """The interface of a model of pictures: `input` float32 [N, C, H, W] in, `<output>` float32 [N, ...] out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: str
    architecture: str = Field(description="timm model name")
    labels: list[str] = Field(description="class name of each output; none for an embedding")
    output: Output = Field("logits", description="what it gives, and the name of the output")
    preprocessing: Preprocessing
    flip_tta: FlipTta = Field(
        "off", description="the output is the mean over the picture and these mirror images of it; inside the graph"
    )
    calibration: Calibration | None = Field(
        None, description="by what the logits are divided, inside the graph; None: nobody asked for it"
    )
    snapshot_id: str | None = Field(None, description="what it was trained on; None outside a snapshot")

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


Spec = ModelSpec | HeadSpec | DetectorSpec
_SPEC: TypeAdapter[Spec] = TypeAdapter(Spec)


def input_shape(spec: Spec) -> tuple[int, ...]:
    """Return the shape of one input: [C, H, W] of a picture, or [features]."""
    if isinstance(spec, HeadSpec):
        return (spec.features,)
    how = spec.preprocessing
    return how.channels, how.height, how.width


def described_input(spec: Spec) -> dict[str, Any]:
    """Return what a client needs to know beside names: how a picture is prepared, or the length of an embedding."""
    if isinstance(spec, HeadSpec):
        return {"features": spec.features}
    described: dict[str, Any] = {"preprocessing": spec.preprocessing.model_dump()}
    if isinstance(spec, ModelSpec):
        if spec.flip_tta != "off":
            described["flip_tta"] = spec.flip_tta
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
    import cv2
    import numpy as np

    flag = cv2.IMREAD_COLOR if how.channels == 3 else cv2.IMREAD_GRAYSCALE
    decoded = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), flag)
    if decoded is None:
        raise DataValidationError(f"{path} is not a picture that can be decoded")
    if how.channels == 3:
        decoded = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    return fit(np.asarray(decoded, np.uint8), how)


def fit(picture: NDArray[np.uint8], how: Preprocessing) -> NDArray[np.uint8]:
    """Resize and pad `picture` (uint8 [h, w] or [h, w, C]) to uint8 [H, W, C]."""
    import cv2
    import numpy as np

    height, width = picture.shape[:2]
    new_height, new_width = resized(height, width, how)
    if (new_height, new_width) != (height, width):
        shrinks = new_height * new_width < height * width
        picture = np.asarray(
            cv2.resize(picture, (new_width, new_height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR),
            np.uint8,
        )
    top, left = (how.height - new_height) // 2, (how.width - new_width) // 2
    if (new_height, new_width) != (how.height, how.width):
        picture = np.asarray(
            cv2.copyMakeBorder(
                picture,
                top,
                how.height - new_height - top,
                left,
                how.width - new_width - left,
                _cv2_border(how.border),
                value=(how.pad_value,) * 3,
            ),
            np.uint8,
        )
    return picture[:, :, None] if picture.ndim == 2 else picture


def _cv2_border(border: Border) -> int:
    import cv2

    return {
        "constant": cv2.BORDER_CONSTANT,
        "wrap": cv2.BORDER_WRAP,
        "reflect": cv2.BORDER_REFLECT_101,
        "replicate": cv2.BORDER_REPLICATE,
    }[border]


def resized(height: int, width: int, how: Preprocessing) -> tuple[int, int]:
    """Return height and width that a picture of this height and width has before it is padded, pixels."""
    if how.resize == "stretch":
        return how.height, how.width
    scale = min(how.height / height, how.width / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def normalize(picture: NDArray[np.uint8], how: Preprocessing) -> NDArray[np.float32]:
    """Return uint8 [H, W, C] as float32 [C, H, W]: `(value / 255 - mean) / std`."""
    import numpy as np

    mean, std = np.asarray(how.mean, np.float32), np.asarray(how.std, np.float32)
    scaled = (picture.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))
