"""What `mlflow.pyfunc.load_model` gives for a published classifier: pictures in, labels and probabilities out.

Publishing puts this file and `picture_preparation.py` beside the graph, as a package of their own. It runs where MLflow
is, with what `requirements.txt` beside it lists, and none of our packages; no object is unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nightshift_common import picture_preparation
else:
    try:
        from . import picture_preparation  # beside this file, where it was published
    except ImportError:
        from nightshift_common import picture_preparation

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(picture_preparation.MAX_PIXELS))  # read with OpenCV's import
GRAPH_FILE = "model.onnx"
SERVED_FILE = "served.json"
BATCH = 32  # pictures that are computed together where the graph takes any number


class Classifier:
    """One version of a model. It answers as its entry `<model>_jpeg` in Triton does: the same preparation and order."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        served = json.loads((folder / SERVED_FILE).read_text(encoding="utf-8"))
        self.version: str = served["version"]
        self.labels: list[str] = served["labels"]
        self.output: str = served["output"]
        self.multi_label: bool = served["multi_label"]
        self.how = picture_preparation.WrittenPreparation(**served["preprocessing"])
        self._session = onnxruntime.InferenceSession(folder / GRAPH_FILE, providers=["CPUExecutionProvider"])
        taken = self._session.get_inputs()[0]
        self._input_name: str = taken.name
        self._batch: int | None = taken.shape[0] if isinstance(taken.shape[0], int) else None
        names = [output.name for output in self._session.get_outputs()]
        self._output_name: str = self.output if self.output in names else names[0]

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Return for each picture `labels` and `label_probabilities`, `probabilities` of every class, and `version`.

        Args:
            data: one picture or several: encoded files (bytes, or a string in Base64), decoded pictures (uint8
                [h, w, 3] in RGB, or [h, w] for a model of gray ones), a batch of them in one array, a table whose first
                column has files; or inputs that are prepared already: float32 [n, C, H, W].
            params: none are known.

        Raises:
            ValueError: a picture cannot be used; the message says which and why.
            TypeError: `data` is nothing of that.
        """
        inputs = self._prepared(data) if _is_prepared(data) else self._pictures(data)
        if not len(inputs):
            return []
        found = picture_preparation.probabilities(self._computed(inputs), self.output)
        order = picture_preparation.likeliest(found, self.multi_label)
        rounded = found.astype(np.float32)  # as Triton answers
        return [
            {
                "labels": [self.labels[index] for index in best],
                "label_probabilities": row[best].tolist(),
                "probabilities": row.tolist(),
                "version": self.version,
            }
            for row, best in zip(rounded, order, strict=True)
        ]

    def _prepared(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        wanted = (self.how.channels, self.how.height, self.how.width)
        if data.ndim != 4 or data.shape[1:] != wanted:
            raise ValueError(f"prepared inputs are float32 [n, {', '.join(map(str, wanted))}], not {list(data.shape)}")
        return data

    def _pictures(self, data: Any) -> NDArray[np.float32]:
        pictures = _listed(data, 2 if self.how.channels == 1 else 3)
        inputs = []
        for number, picture in enumerate(pictures, 1):
            made = self._input(picture)
            if isinstance(made, str):
                where = f"picture {number} of {len(pictures)}: " if len(pictures) > 1 else ""
                raise ValueError(f"{where}{made}")  # noqa: TRY004 - a text says what is wrong with the picture
            inputs.append(made)
        return np.stack(inputs) if inputs else np.empty((0,), np.float32)

    def _input(self, picture: Any) -> NDArray[np.float32] | str:
        """Return the input [C, H, W] of one picture, or why there is none."""
        if isinstance(picture, str):
            picture = picture.encode()
        if isinstance(picture, bytes | bytearray | memoryview):
            return picture_preparation.served_input(bytes(picture), self.how)
        if not isinstance(picture, np.ndarray):
            return f"it is {type(picture).__name__}, neither an encoded file (bytes) nor an array"
        channels = picture.shape[2:] or (1,)
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or channels != (self.how.channels,):
            wanted = "[h, w, 3] in RGB" if self.how.channels == 3 else "[h, w]"
            return f"it is {picture.dtype} {list(picture.shape)}; a decoded picture is uint8 {wanted}"
        if not picture.size:
            return "it is empty"
        decoded = picture if self.how.channels == 3 else picture.reshape(picture.shape[:2])
        return picture_preparation.normalize(picture_preparation.fit(np.ascontiguousarray(decoded), self.how), self.how)

    def _computed(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the graph's outputs [n, K]; one that takes whole batches alone gets the last one filled with zeros."""
        size = self._batch or BATCH
        outputs = []
        for start in range(0, len(inputs), size):
            batch = inputs[start : start + size]
            missing = self._batch - len(batch) if self._batch else 0
            filled = np.pad(batch, ((0, missing), (0, 0), (0, 0), (0, 0)))
            outputs.append(self._session.run([self._output_name], {self._input_name: filled})[0][: len(batch)])
        return np.concatenate(outputs)


def _is_prepared(data: Any) -> bool:
    return isinstance(data, np.ndarray) and data.dtype == np.float32


def _listed(data: Any, dimensions: int) -> Sequence[Any]:
    """Return the pictures in `data`; a decoded one has so many `dimensions`, or 3 where a gray one has its channel."""
    if isinstance(data, str | bytes | bytearray | memoryview):
        return [data]
    if hasattr(data, "iloc"):  # a table of pandas
        return list(data.iloc[:, 0] if data.ndim == 2 else data)
    if isinstance(data, dict):
        if len(data) != 1:
            raise ValueError(f"a table of pictures has one column, not {sorted(map(str, data))}")
        return _listed(next(iter(data.values())), dimensions)
    if isinstance(data, np.ndarray):
        if data.dtype == np.object_ or data.dtype.kind == "S":
            return list(data.ravel())
        one = data.ndim == dimensions or (dimensions == 2 and data.ndim == 3 and data.shape[2] == 1)
        return [data] if one else list(data)
    if isinstance(data, Sequence):
        return data
    raise TypeError(f"{type(data).__name__} is neither an encoded picture, an array, a list of them nor a table")


def _load_pyfunc(path: str) -> Classifier:
    """Return the model in the folder `path`; MLflow calls this."""
    return Classifier(Path(path))
