"""Asking a model that Triton serves, and comparing its answers with those that were verified."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conversion_jobs.detection.agreement import BoxAgreement
from conversion_jobs.onnx.session import Latency, filled
from conversion_jobs.verification.checks import (
    Check,
    Close,
    Cosine,
    Finite,
    LabelAgreement,
    Top1Agreement,
    Verdict,
    judge_all,
    of_output,
)
from conversion_jobs.verification.expected import FURTHER
from jobkit import settings
from jobkit.errors import DataValidationError, TransientError
from nightshift_common.verified_examples import ABSOLUTE, COSINE, RELATIVE

Array = NDArray[np.float32]
# What serves may be another device with other kernels: wider than the export's limits, for a graph of the same numbers.
ONNX_CHECKS: tuple[Check, ...] = (Finite(), Close(ABSOLUTE, RELATIVE), Top1Agreement(1.0))
# A plan of half precision; see `checks` for where the limits come from.
TENSORRT_CHECKS: tuple[Check, ...] = (Finite(), Cosine(COSINE), Top1Agreement(0.99))
CHECKS = {"onnx": ONNX_CHECKS, "tensorrt": TENSORRT_CHECKS}
DETECTOR_CHECKS = {"onnx": BoxAgreement(0.98, 0.01), "tensorrt": BoxAgreement(0.95, 0.05)}
WARM_UP, CALLS = 5, 20


def served_checks(target: str, output: str) -> tuple[Check, ...]:
    """Return what the answers of a target are held to; `output` as `judged_as` calls it.

    An embedding has no first class to agree on, and of several labels all have to agree.
    """
    if output in ("raw", "detections"):
        return (Finite(), DETECTOR_CHECKS[target])
    if output == "multi_label":
        return tuple(
            LabelAgreement(check.minimum) if isinstance(check, Top1Agreement) else check for check in CHECKS[target]
        )
    return tuple(check for check in CHECKS[target] if output != "embedding" or not isinstance(check, Top1Agreement))


class Reference:
    """Inputs and outputs that `verify_onnx` has compared: `inputs` float32 [n, ...], `outputs` [n, ...]."""

    def __init__(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as stored:
                self.inputs: Array = stored["inputs"]
                self.outputs: Array = stored["outputs"]
                self.pictures = [str(name) for name in stored["pictures"]]
                self.output = str(stored["output"])  # as `judged_as` calls it
                self.further: dict[str, Array] = {  # outputs after the first
                    name.removeprefix(FURTHER): stored[name] for name in stored.files if name.startswith(FURTHER)
                }
        except (ValueError, KeyError, OSError, EOFError) as error:
            raise DataValidationError(f"{path} is not what verify_onnx writes: {error}") from error


class ServedModel:
    """A model under one name in the Triton that `NIGHTSHIFT_TRITON_URL` names.

    Every call raises `TransientError` where Triton does not answer, `DataValidationError` where the model fails.
    """

    def __init__(self, name: str) -> None:
        from tritonclient.http import InferenceServerClient

        self.name = name
        self.address = settings.require(settings.TRITON_URL)
        self._client = InferenceServerClient(self.address, connection_timeout=10.0, network_timeout=60.0)

    def ask(self, inputs: Array) -> tuple[Array, int]:
        """Return the first output for `inputs` [n, ...], and the version that answered."""
        outputs, version = self.ask_all(inputs)
        return next(iter(outputs.values())), version

    def ask_all(self, inputs: Array) -> tuple[dict[str, Array], int]:
        """Return the outputs for `inputs` [n, ...] by their names, and the version that answered.

        A model with a fixed batch is asked for a whole one: its filling is cut off.
        """
        from tritonclient.http import InferInput
        from tritonclient.utils import InferenceServerException

        count = len(inputs)
        given = inputs if self.batch is None else filled(inputs, self.batch)
        tensor = InferInput(self.input, list(given.shape), "FP32")
        tensor.set_data_from_numpy(given)
        try:
            answer = self._client.infer(self.name, [tensor])
        except InferenceServerException as error:
            raise DataValidationError(f"{self.name} in Triton at {self.address} fails: {error}") from error
        except OSError as error:
            raise TransientError(f"Triton at {self.address} did not answer for {self.name}: {error!r}") from error
        said = answer.get_response()
        names = [str(entry["name"]) for entry in said.get("outputs") or []]
        outputs = {name: answer.as_numpy(name) for name in names}
        if not outputs or any(output is None or output.size == 0 for output in outputs.values()):
            raise DataValidationError(f"{self.name} in Triton at {self.address} answers without an output")
        return {name: output[:count] for name, output in outputs.items()}, int(said["model_version"])

    def check(self, reference: Reference, target: str, version: int) -> list[Verdict]:
        """Compare the answers to the reference's inputs, one by one and together, with its outputs.

        Raises:
            DataValidationError: they differ, or another version than `version` answers.
        """
        size = min(len(reference.inputs), self.max_batch_size)
        starts = range(0, len(reference.inputs), size)
        single = [self.ask_all(picture[None]) for picture in reference.inputs]
        batches = [self.ask_all(reference.inputs[start : start + size]) for start in starts]
        versions = sorted({number for _, number in (*single, *batches)})
        if versions != [version]:
            raise DataValidationError(f"version {version} of {self.name} should serve, but {versions} answered")
        found = self._judge(reference, [outputs for outputs, _ in single], target, "one by one")
        return found + self._judge(reference, [outputs for outputs, _ in batches], target, f"in batches of {size}")

    @property
    def max_batch_size(self) -> int:
        """The largest batch that the model takes; 1 where it takes none."""
        return int(self._config.get("max_batch_size", 0)) or self.batch or 1

    @property
    def batch(self) -> int | None:
        """The one batch size that the model takes; None: any up to the largest."""
        if int(self._config.get("max_batch_size", 0)):
            return None
        first = int(self._config["input"][0]["dims"][0])
        return first if first > 0 else None

    @property
    def input(self) -> str:
        """The name of the input."""
        return str(self._config["input"][0]["name"])

    @cached_property
    def _config(self) -> dict[str, Any]:
        from tritonclient.utils import InferenceServerException

        try:
            return dict(self._client.get_model_config(self.name))
        except InferenceServerException as error:
            raise DataValidationError(
                f"{self.name} in Triton at {self.address} has no configuration: {error}"
            ) from error
        except OSError as error:
            raise TransientError(f"Triton at {self.address} did not answer for {self.name}: {error!r}") from error

    def _judge(self, reference: Reference, answers: list[dict[str, Array]], target: str, how: str) -> list[Verdict]:
        first = next(iter(answers[0]))
        served = np.concatenate([answer[first] for answer in answers])
        verdicts = judge_all(served_checks(target, reference.output), reference.outputs, served, reference.pictures)
        checks = served_checks(target, "embedding")
        for name, wanted in reference.further.items():
            if any(name not in answer for answer in answers):
                raise DataValidationError(
                    f"{self.name} answers without the output {name!r}; it has {', '.join(answers[0])}"
                )
            further = np.concatenate([answer[name] for answer in answers])
            verdicts += of_output(name, judge_all(checks, wanted, further, reference.pictures))
        failed = [f"{verdict.sentence} (worst: {verdict.worst_picture})" for verdict in verdicts if not verdict.passed]
        if failed:
            raise DataValidationError(f"{self.name} answers otherwise than was verified, {how}: {'; '.join(failed)}")
        return verdicts

    def latency(self, inputs: Sequence[Array]) -> Latency:
        """Time requests of one picture over HTTP, after a warm-up."""
        times = []
        for number in range(WARM_UP + CALLS):
            picture = inputs[number % len(inputs)]
            started = time.perf_counter()
            self.ask(picture[None])
            times.append((time.perf_counter() - started) * 1000)
        median, p90, p99 = np.percentile(times[WARM_UP:], [50, 90, 99])
        return Latency(batch=1, median=round(median, 3), p90=round(p90, 3), p99=round(p99, 3))

    def close(self) -> None:
        """Close the connection: open ones use up the time that Triton takes to stop."""
        self._client.close()
