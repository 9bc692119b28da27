"""Triton's Python backend: encoded pictures in, the classes and probabilities of the model behind this entry out.

The model storage puts this file, `picture_preparation.py` and `specs.json` into a version of `<model>_jpeg`; nothing
of it comes from an uploaded package but the values in `specs.json`. It runs in Triton's own Python, which needs numpy
and OpenCV.

`specs.json` has the specs of all versions that may serve while this entry does, by their numbers in Triton. A picture
is prepared by the spec of one number and sent to the model under that very number, so what prepares and what answers
are of one version, also while another is being loaded.
"""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils  # Triton's stub puts it on the path

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nightshift_common import picture_preparation
else:
    import picture_preparation

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(picture_preparation.MAX_PIXELS))  # read with OpenCV's import
THREADS = 4  # decode the pictures of a batch; OpenCV lets go of the interpreter lock
_NOT_SERVED = re.compile("not at ready state|is not ready|not found|unknown model")


class NotServed(Exception):
    """The model has no such version now."""


@dataclass(frozen=True)
class Version:
    """A version of the model as this entry asks it."""

    number: int
    name: str
    labels: tuple[str, ...]
    output: str
    input_name: str
    output_name: str
    preparation: picture_preparation.WrittenPreparation
    max_batch_size: int
    multi_label: bool = False

    @classmethod
    def of(cls, number: str, spec: dict[str, Any]) -> Version:
        """Return the version of an entry of `specs.json`."""
        how = picture_preparation.WrittenPreparation(**spec["preprocessing"])
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
        contents = [pictures[owner][index] for owner, index in places]
        prepared = partial(picture_preparation.served_input, how=version.preparation)
        made = list(self.pool.map(prepared, contents))
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


def _response(probabilities: NDArray[np.float64], version: Version) -> Any:
    """Return the answer to a request: probabilities [n, K], the likeliest classes [n, k] and theirs, the version."""
    order = picture_preparation.likeliest(probabilities, version.multi_label)
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
