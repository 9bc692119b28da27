"""What makes the entry `<model>_jpeg`: its configuration, our code, and the specs of the versions that it may ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from google.protobuf import text_format  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

import nightshift_common.picture_preparation
from services.model_storage.errors import Refused
from services.model_storage.repository.model_config import CONFIG_FILE

SPEC_FILE = "model.json"
MAX_BATCH_SIZE = 8  # pictures that are decoded together at least; the model gets them in batches of its own size
_CODE = {
    "model.py": Path(__file__).parent / "model.py",
    "picture_preparation.py": Path(nightshift_common.picture_preparation.__file__),
}
_Positive = Annotated[int, Field(gt=0, le=1 << 14)]


class PicturePreparation(BaseModel):
    """The field `preprocessing` of a classifier's `model.json`; a key that is not known here is refused."""

    model_config = ConfigDict(extra="forbid")

    height: _Positive
    width: _Positive
    channels: Literal[1, 3] = 3
    resize: Literal["letterbox", "stretch"] = "letterbox"
    border: Literal["constant", "wrap", "reflect", "replicate"] = "constant"
    pad_value: Annotated[int, Field(ge=0, le=255)] = 0
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> PicturePreparation:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError("mean and std need one value a channel")
        return self


class PictureSpec(BaseModel):
    """What a classifier's `model.json` says, as far as the entry needs it."""

    labels: Annotated[list[str], Field(min_length=1)]
    output: Literal["logits", "probabilities"]
    multi_label: bool = False
    preprocessing: PicturePreparation

    def as_values(self, version: str, config: Any) -> dict[str, Any]:
        """Return the version's entry in `specs.json`; `config` is what the model is served by."""
        outputs = [entry.name for entry in config.output]
        return {
            **self.model_dump(mode="json"),
            "version": version,
            "max_batch_size": config.max_batch_size,
            "input_name": config.input[0].name,
            "output_name": self.output if self.output in outputs else outputs[0],
        }


def spec_of(content: bytes, config: Any) -> PictureSpec | None:
    """Return the spec in a `model.json`; None of a detector, a head or an embedding, which tell no classes.

    Raises:
        Refused: it is not valid, or contradicts the configuration that the model is served by.
    """
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{SPEC_FILE} is not JSON: {error}") from error
    if not isinstance(values, dict) or "task" in values or not values.get("labels") or "preprocessing" not in values:
        return None
    try:
        spec = PictureSpec.model_validate(values)
    except ValidationError as error:
        raise Refused(f"{SPEC_FILE} describes no way to prepare a picture: {error}") from error
    how = spec.preprocessing
    wanted = [how.channels, how.height, how.width]
    dims = [list(entry.dims)[-3:] for entry in config.input]
    if len(dims) != 1 or any(size not in (-1, side) for size, side in zip(dims[0], wanted, strict=False)):
        raise Refused(f"{SPEC_FILE} prepares inputs of {wanted}; the configuration has {dims}")
    if not config.output:
        raise Refused(f"{CONFIG_FILE} names no output")
    return spec


def entry_files(name: str, model: str, number: int, versions: dict[int, dict[str, Any]]) -> dict[str, bytes]:
    """Return the files of the entry `name` for `model`, by their paths in its folder.

    Args:
        name: the entry's, `<model>_jpeg`.
        model: what it asks.
        number: of the entry's own version; that of the version which will serve.
        versions: the specs of all versions that it may ask, by number; the one to ask first comes first.
    """
    specs = {"model": model, "versions": {str(which): spec for which, spec in versions.items()}}
    files = {f"{number}/{file}": path.read_bytes() for file, path in _CODE.items()}
    files[f"{number}/specs.json"] = json.dumps(specs, indent=1).encode()
    largest = max(MAX_BATCH_SIZE, *(spec["max_batch_size"] for spec in versions.values()))
    return {**files, CONFIG_FILE: _config(name, number, largest).encode()}


def _config(name: str, number: int, max_batch_size: int) -> str:
    config = ModelConfig(name=name, backend="python", max_batch_size=max_batch_size)
    config.version_policy.specific.versions.append(number)
    config.input.add(name="picture", data_type=DataType.TYPE_STRING, dims=[1])
    for output, kind, size in (
        ("labels", DataType.TYPE_STRING, -1),
        ("label_probabilities", DataType.TYPE_FP32, -1),
        ("probabilities", DataType.TYPE_FP32, -1),
        ("version", DataType.TYPE_STRING, 1),
    ):
        config.output.add(name=output, data_type=kind, dims=[size])
    config.instance_group.add(kind="KIND_CPU", count=1)
    config.dynamic_batching.SetInParent()
    return str(text_format.MessageToString(config))
