"""Asking a served classifier about pictures as they are: by its entry `<model>_jpeg`, or prepared here without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from conversion_jobs.triton.served_model import ServedModel
from jobkit.answers import Answers
from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError, TransientError
from jobkit.model_spec import ModelSpec, normalize, picture_of
from nightshift_common.picture_preparation import SHOWN, probabilities

ENTRY = "_jpeg"  # what the model storage adds to a model's name
PICTURES = 48  # golden pictures that a version is tried with
# Both sides compute in FP32, and TF32 or another device's kernels change a logit of 20 by 0.02; FP16 by 0.2.
LIMITS = {"onnx": 0.02, "tensorrt": 0.1}


@dataclass(frozen=True)
class Answer:
    """What a picture shows: the likeliest classes first; the semantic version that said so, where it says one."""

    labels: list[str]
    probabilities: list[float]
    version: str | None = None


class ServedPictures:
    """The entry for pictures of one model in the Triton that `NIGHTSHIFT_TRITON_URL` names.

    Every call raises `TransientError` where Triton does not answer, `DataValidationError` where it refuses a picture.
    """

    def __init__(self, name: str) -> None:
        from tritonclient.http import InferenceServerClient

        self.name = name + ENTRY
        served = ServedModel(name)
        served.close()
        self.address = served.address
        self._client = InferenceServerClient(self.address, connection_timeout=10.0, network_timeout=60.0)

    def is_served(self) -> bool:
        """Whether Triton has the entry."""
        try:
            return bool(self._client.is_model_ready(self.name))
        except OSError as error:
            raise TransientError(f"Triton at {self.address} did not answer for {self.name}: {error!r}") from error

    def ask(self, content: bytes) -> Answer:
        """Return what the picture in an encoded file shows."""
        from tritonclient.http import InferInput
        from tritonclient.utils import InferenceServerException

        tensor = InferInput("picture", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[content]], np.object_))
        try:
            answer = self._client.infer(self.name, [tensor])
        except InferenceServerException as error:
            raise DataValidationError(f"{self.name} in Triton at {self.address} fails: {error.message()}") from error
        except OSError as error:
            raise TransientError(f"Triton at {self.address} did not answer for {self.name}: {error!r}") from error
        labels = [label.decode() for label in answer.as_numpy("labels")[0]]
        found = [float(value) for value in answer.as_numpy("label_probabilities")[0]]
        return Answer(labels, found, answer.as_numpy("version")[0, 0].decode())

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def ask_prepared(served: ServedModel, content: bytes, spec: ModelSpec, name: str) -> Answer:
    """Return what the picture shows to a model that takes prepared inputs alone."""
    inputs = normalize(picture_of(content, spec.preprocessing, name), spec.preprocessing)[None]
    output, _ = served.ask(inputs)
    found = probabilities(output, spec.output)[0]
    order = np.argsort(-found, kind="stable")[: max(5, int((found >= SHOWN).sum()) if spec.multi_label else 0)]
    return Answer([spec.labels[index] for index in order], [float(found[index]) for index in order])


def differing_specs(evaluated: ModelSpec, packaged: ModelSpec) -> list[str]:
    """Return in what a package's `model.json` differs from the one that was evaluated, as sentences."""
    sentences = []
    if evaluated.labels != packaged.labels:
        pairs = list(zip(evaluated.labels, packaged.labels, strict=False))
        places = [index for index, (ours, theirs) in enumerate(pairs) if ours != theirs] or [len(pairs)]
        shown = ", ".join(
            f"class {index} is {_at(packaged.labels, index)}, was {_at(evaluated.labels, index)}"
            for index in places[:5]
        )
        sentences.append(f"the labels: {shown}")
    if evaluated.multi_label != packaged.multi_label:
        sentences.append(f"multi_label is {packaged.multi_label}, was {evaluated.multi_label}")
    if evaluated.output != packaged.output:
        sentences.append(f"the output is {packaged.output}, was {evaluated.output}")
    before, now = evaluated.preprocessing.model_dump(), packaged.preprocessing.model_dump()
    sentences += [f"{key} is {now[key]}, was {value}" for key, value in before.items() if now[key] != value]
    return sentences


def check_answers(name: str, answers: Answers, bottle: Bottle, spec: ModelSpec, target: str) -> str:
    """Send golden pictures as they are to what is served as `name` and compare with what evaluation found.

    Returns:
        A sentence for the log.

    Raises:
        DataValidationError: a class has another probability than was found; the message names the worst picture.
    """
    pictures, served, plain = ServedPictures(name), ServedModel(name), ""
    worst, wrong, limit = (0.0, ""), 0, LIMITS[target]
    some = answers.some(PICTURES)
    try:
        by_entry = pictures.is_served()
        who = pictures.name if by_entry else name
        plain = "" if by_entry else f", prepared here since Triton serves no {pictures.name}"
        for key, source, expected in zip(some.pictures, some.sources, some.probabilities, strict=True):
            content = bottle.read(key)
            answer = pictures.ask(content) if by_entry else ask_prepared(served, content, spec, source)
            known = dict(zip(some.spec.labels, map(float, expected), strict=True))
            off, label, said = max(
                (abs(value - known.get(label, -1.0)), label, value)
                for label, value in zip(answer.labels, answer.probabilities, strict=True)
            )
            wrong += off > limit
            found = f"{known[label]:.3f}" if label in known else "no such class"
            worst = max(worst, (off, f"{source}: {label!r} has {said:.3f}, evaluation found {found}"))
    finally:
        pictures.close()
        served.close()
    if wrong:
        raise DataValidationError(
            f"{who} answers otherwise than evaluation found for {wrong} of {len(some.pictures)} golden pictures sent "
            f"as they are; {worst[1]}. The labels or the preprocessing of the package are not those that were evaluated"
        )
    return f"{who}: {len(some.pictures)} golden pictures as they are, probabilities within {worst[0]:.2g}{plain}"


def _at(labels: Sequence[str], index: int) -> str:
    return repr(labels[index]) if index < len(labels) else "none"
