"""Triton's Python backend: encoded pictures in, the classes and probabilities of the model behind this entry out.

The model storage puts this file, `picture_preparation.py` and `specs.json` into a version of `<model>_jpeg`; nothing
of it comes from an uploaded package but the values in `specs.json`. It runs in Triton's own Python, which needs numpy
and OpenCV.

`specs.json` has the specs of all versions that may serve while this entry does, by their numbers in Triton. A picture
is prepared by the spec of one number and sent to the model under that very number, so what prepares and what answers
are of one version, also while another is being loaded.
"""

from __future__ import annotations

import base64
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

MAX_PIXELS = 200_000_000  # a picture that decodes to more would take the server's memory: 600 MB are enough
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))  # read when OpenCV is imported

import numpy as np  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402 - Triton's stub puts it on the path

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nightshift_common import picture_preparation
else:
    import picture_preparation

THREADS = 4  # decode the pictures of a batch; OpenCV lets go of the interpreter lock
TOP = 5
_NOT_SERVED = re.compile("not at ready state|is not ready|not found|unknown model")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{16}")  # no picture file begins so; JSON can carry one in this form alone


class NotServed(Exception):
    """The model has no such version now."""


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes the input. A key that is not here is refused: left out, it would change the pixels."""

    height: int
    width: int
    channels: int
    resize: str
    pad_value: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    border: str = "constant"


@dataclass(frozen=True)
class Version:
    """A version of the model as this entry asks it."""

    number: int
    name: str
    labels: tuple[str, ...]
    output: str
    input_name: str
    output_name: str
    preparation: Preparation
    max_batch_size: int
    multi_label: bool = False

    @classmethod
    def of(cls, number: str, spec: dict[str, Any]) -> Version:
        """Return the version of an entry of `specs.json`."""
        how = Preparation(**spec["preprocessing"])
        labels = tuple(spec["labels"])
        names = spec["input_name"], spec["output_name"]
        size, several = max(1, spec["max_batch_size"]), spec.get("multi_label", False)
        return cls(int(number), spec["version"], labels, spec["output"], *names, how, size, several)


class TritonPythonModel:
    """The entry of one model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the specs; OpenCV is imported here, so that a server without it refuses the entry and says why."""
        try:
            import cv2
        except ImportError as error:
            raise pb_utils.TritonModelException(
                f"pictures are decoded by OpenCV, which the Python of this Triton lacks ({error}): serve with "
                "docker/triton.Dockerfile, or install opencv-python-headless into the image"
            ) from error
        cv2.setNumThreads(1)  # the threads here are enough
        specs = json.loads((Path(__file__).parent / "specs.json").read_text())
        self.model: str = specs["model"]
        self.versions = [Version.of(number, spec) for number, spec in specs["versions"].items()]
        self.pool = ThreadPoolExecutor(THREADS)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests; a picture that does not decode fails its own request alone."""
        try:
            return self._answers(requests)
        except Exception as error:  # noqa: BLE001 - it belongs into the answers: raised, it would end the instance
            return [_failure(error) for _ in requests]

    def finalize(self) -> None:
        """Let the threads go."""
        self.pool.shutdown(wait=False)

    def _answers(self, requests: list[Any]) -> list[Any]:
        pictures = [
            [bytes(content) for content in pb_utils.get_input_tensor_by_name(request, "picture").as_numpy().ravel()]
            for request in requests
        ]
        refusals: list[str] = []
        for version in list(self.versions):
            try:
                found = self._ask(version, pictures)
            except NotServed as error:
                refusals.append(str(error))
                continue
            self.versions.remove(version)
            self.versions.insert(0, version)  # the next requests are most likely for it
            return found
        raise RuntimeError(f"{self.model} has no version that this entry knows: {'; '.join(refusals)}")

    def _ask(self, version: Version, pictures: list[list[bytes]]) -> list[Any]:
        """Return the responses of one version, one a list of pictures."""
        places = [(owner, index) for owner, contents in enumerate(pictures) for index in range(len(contents))]
        made = list(self.pool.map(lambda place: _prepared(pictures[place[0]][place[1]], version.preparation), places))
        faults: dict[int, str] = {}
        for (owner, index), result in zip(places, made, strict=True):
            if isinstance(result, str):
                where = f"picture {index + 1} of {len(pictures[owner])}: " if len(pictures[owner]) > 1 else ""
                faults.setdefault(owner, f"{where}{result}")
        good = [
            result
            for (owner, _), result in zip(places, made, strict=True)
            if owner not in faults and not isinstance(result, str)
        ]
        found = iter(self._probabilities(version, np.stack(good)) if good else ())
        return [
            _failure(faults[owner])
            if owner in faults
            else _response(np.stack([next(found) for _ in contents]), version)
            for owner, contents in enumerate(pictures)
        ]

    def _probabilities(self, version: Version, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return what the model gives for float32 [n, C, H, W]: [n, K]."""
        size = version.max_batch_size
        outputs = [self._infer(version, inputs[start : start + size]) for start in range(0, len(inputs), size)]
        joined = np.concatenate(outputs)
        if joined.shape != (len(inputs), len(version.labels)):
            wanted = (len(inputs), len(version.labels))
            raise RuntimeError(f"{self.model} {version.name} gives {list(joined.shape)}, not {list(wanted)}")
        return picture_preparation.probabilities(joined, version.output)

    def _infer(self, version: Version, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        request = pb_utils.InferenceRequest(
            model_name=self.model,
            model_version=version.number,
            requested_output_names=[version.output_name],
            inputs=[pb_utils.Tensor(version.input_name, np.ascontiguousarray(inputs))],
        )
        response = request.exec()
        if response.has_error():
            message = response.error().message()
            if _NOT_SERVED.search(message):
                raise NotServed(message)
            raise RuntimeError(message)
        output: NDArray[np.float32] = pb_utils.get_output_tensor_by_name(response, version.output_name).as_numpy()
        return output


def _prepared(content: bytes, how: Preparation) -> NDArray[np.float32] | str:
    """Return the input [C, H, W] of an encoded picture, or why there is none."""
    if _BASE64.match(content):
        try:
            content = base64.b64decode(content, validate=True)
        except ValueError:
            return "it is neither a picture nor one in Base64"
    if not content:
        return "it is empty"
    if picture_preparation.is_torn(content):
        return "it is torn: the file ends before its picture does"
    decoded = picture_preparation.decode(content, how.channels)
    if decoded is None:
        return f"it is no picture that can be decoded, or has more than {MAX_PIXELS // 1_000_000} million pixels"
    return picture_preparation.normalize(picture_preparation.fit(decoded, how), how)


def _response(probabilities: NDArray[np.float64], version: Version) -> Any:
    """Return the answer to a request: probabilities [n, K], the likeliest classes [n, k] and theirs, the version.

    Where a picture may have several labels, none of those that one of the request shows is cut off.
    """
    shown = int((probabilities >= picture_preparation.SHOWN).sum(axis=1).max()) if version.multi_label else 0
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, : max(TOP, shown)]
    names = np.array([label.encode() for label in version.labels], np.object_)
    versions = np.full((len(probabilities), 1), version.name.encode(), np.object_)
    return pb_utils.InferenceResponse(
        output_tensors=[
            pb_utils.Tensor("labels", names[order]),
            pb_utils.Tensor("label_probabilities", np.take_along_axis(probabilities, order, 1).astype(np.float32)),
            pb_utils.Tensor("probabilities", np.ascontiguousarray(probabilities.astype(np.float32))),
            pb_utils.Tensor("version", versions),
        ]
    )


def _failure(why: object) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(why)))
