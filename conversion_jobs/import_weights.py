"""Bring weights from elsewhere into the bottle as an experiment, so that they are exported, verified, served like ours.

The first task of a conversion alone: what follows reads the experiment that this writes, whatever the weights were.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from conversion_jobs.detection.import_detector import write_detector
from conversion_jobs.families.archives import LABELS_FILE as NUM2LABEL
from conversion_jobs.families.archives import opened_weights
from conversion_jobs.families.probing import names_of_outputs
from conversion_jobs.onnx.graph import compact_json
from conversion_jobs.sandboxed.answering import answer_experiment, answer_graph, outputs_of, stored
from conversion_jobs.sandboxed.exporting import GRAPH
from conversion_jobs.sandboxed.importing import SCRIPT, Imported, import_source
from conversion_jobs.sandboxed.own_graph import list_external_files, take_graph
from conversion_jobs.verification.expected import read_expected
from conversion_jobs.verification.golden_inputs import array_names
from jobkit import job
from jobkit.bottle import Bottle
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import IMPORTED, Experiment, read_spec
from jobkit.files import sha256_of
from jobkit.local_file import local_file
from jobkit.model_spec import (
    ArraySpec,
    HeadSpec,
    ModelSpec,
    NonMaxSuppression,
    OutputTensor,
    Preprocessing,
    Spec,
    input_shape,
    output_names,
    per_channel,
)
from jobkit.paths import checked_name, experiments, picture
from jobkit.sandbox import runner
from jobkit.snapshot import Refused, Sample, read_snapshot, write_snapshot
from nightshift_common.options.weights import ImportOptions
from nightshift_common.picture_files import SUFFIXES

if TYPE_CHECKING:
    from conversion_jobs.verification.labels import LabelCheck

logger = logging.getLogger("conversion_jobs.import_weights")


class Arguments(job.Arguments, ImportOptions):
    """Make an experiment of a file of weights: its model, its classes, and real inputs to verify it with."""


class Result(job.Result):
    """The experiment and the snapshot to verify it with; a model that takes no pictures has none."""

    experiment: str
    snapshot_id: str | None
    notes: list[str] = Field([], description="what was done to the model that its owner should know")
    accuracy: float | None = Field(
        None, description="share of the pictures that get the class of the folder that they lie in, where folders are"
    )
    warnings: list[str] = Field([], description="what speaks against the labels or the preprocessing that were given")


@dataclass(frozen=True)
class Files:
    """What came with the weights, on this machine."""

    weights: Path
    labels: list[str]
    arrays: Path | None
    expected: Path | None


def run(arguments: Arguments, context: job.Context) -> Result:
    """Load the weights once, to see that they are what they should be; write the experiment, its spec last."""
    group, bottle = checked_name(arguments.group, "group"), context.bottle
    if arguments.takes_pictures and arguments.family not in ("onnx", "ultralytics"):
        preprocessing(arguments, arguments.sizes)  # refused before anything is written
    given = local_file(arguments.weights, bottle)
    arrays = arguments.embeddings or arguments.inputs
    with opened_weights(given) as found:
        files = Files(
            found.path, class_names(arguments, found.labels), local_file(arrays, bottle) if arrays else None,
            local_file(arguments.expected, bottle) if arguments.expected else None,
        )  # fmt: skip
        snapshot_id = arguments.snapshot_id
        if arguments.pictures is not None:
            snapshot_id = write_pictures(bottle, group, arguments.pictures)
        result = write(arguments, bottle, files, snapshot_id)
    checked = checked_labels(bottle, Experiment(result.experiment), snapshot_id)
    if checked is None:
        return result
    logger.info("%.1f%% of %d pictures get the class of their folder", 100 * checked.accuracy, checked.pictures)
    for warning in checked.warnings:
        logger.warning(warning)
    if context.is_tracked:
        context.tracking.metrics({"import.accuracy": checked.accuracy})
        context.tracking.tags({"import_warning": "; ".join(checked.warnings)})
    return result.model_copy(update={"accuracy": checked.accuracy, "warnings": checked.warnings})


def class_names(arguments: Arguments, found: list[str]) -> list[str]:
    """Return the names of the classes: those of the options, or those that came with the weights.

    Raises:
        ConfigurationError: both are there and differ; or there are none, and the model has classes.
    """
    named = arguments.class_names
    if named and found and named != found:
        raise ConfigurationError(
            f"--labels are {', '.join(named)}, but {NUM2LABEL} says {', '.join(found)}: leave --labels out"
        )
    labels = named or ([] if arguments.family == "vit" else found)
    if not labels and arguments.takes_pictures and arguments.family not in ("vit", "onnx", "ultralytics"):
        raise ConfigurationError(f"give labels, the names of the classes: {arguments.weights} has no {NUM2LABEL}")
    return labels


def checked_labels(bottle: Bottle, experiment: Experiment, snapshot_id: str | None) -> LabelCheck | None:
    """Return how often the imported classifier names the folder of a picture; None where that cannot be told."""
    spec = read_spec(bottle, experiment)
    if not isinstance(spec, ModelSpec) or not spec.labels or snapshot_id is None:
        return None
    from conversion_jobs.verification.labels import check_labels  # scipy, which the environment of detectors has not

    is_own = bottle.exists(experiment.own_graph)
    model = bottle.local(experiment.own_graph if is_own else experiment.torchscript)

    def answer(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        with stored(inputs) as path:
            values = {"graph": model} if is_own else {"script": model, "spec": spec}
            function = answer_graph if is_own else answer_experiment
            with runner.run(function, {**values, "inputs": path}, reads=[model, path]) as done:
                return outputs_of(done, len(inputs))[0]

    golden = read_snapshot(bottle, spec.group, snapshot_id).split("golden")
    return check_labels(spec, [(sample, bottle.local(sample.path)) for sample in golden], answer)


def write(arguments: Arguments, bottle: Bottle, files: Files, snapshot_id: str | None) -> Result:
    """Write the experiment, if it is not there yet; what came with the weights beside it."""
    described = arguments.model_dump(
        mode="json", exclude={"weights", "pictures", "snapshot_id", "embeddings", "inputs", "expected"}
    )
    beside = [files.arrays, files.expected, *(external_data(files.weights) if arguments.family == "onnx" else [])]
    identity = [sha256_of(files.weights), described, *(sha256_of(path) if path else None for path in beside)]
    mark = hashlib.sha256(compact_json([*identity, files.labels]).encode()).hexdigest()[:12]
    experiment = Experiment(f"{experiments(arguments.group)}/{IMPORTED}{arguments.family}_{mark}")
    notes: list[str] = []
    if not bottle.exists(experiment.spec):
        if arguments.family == "ultralytics":
            how = NonMaxSuppression.of(arguments)
            write_detector(bottle, experiment, files.weights, arguments.img_size, files.labels, how)
        elif arguments.family == "onnx":
            notes = write_own_graph(bottle, experiment, files, arguments)
        else:
            notes = write_experiment(bottle, experiment, files, arguments)
    if files.expected is not None:
        write_expected(bottle, experiment, files.expected, input_names(bottle, arguments.group, snapshot_id, files))
    for note in notes:
        logger.warning("%s: %s", files.weights.name, note)
    inputs = f"snapshot {snapshot_id}" if snapshot_id else arguments.embeddings or arguments.inputs
    logger.info("%s, to be verified with %s", experiment.folder, inputs or "random numbers: no inputs were given")
    return Result(experiment=experiment.folder, snapshot_id=snapshot_id, notes=notes)


def preprocessing(arguments: Arguments, sizes: tuple[int, ...]) -> Preprocessing:
    """Return how a picture becomes the model's input, whose sizes are [C, H, W].

    Raises:
        ConfigurationError: mean and std are not one value a channel.
    """
    channels, height, width = sizes
    mean, std = per_channel(arguments.mean, channels), per_channel(arguments.std, channels)
    if not len(mean) == len(std) == channels:
        raise ConfigurationError(f"--mean and --std have {len(mean)} and {len(std)} values for {channels} channels")
    values = {"height": height, "width": width, "channels": channels, "mean": mean, "std": std}
    return Preprocessing.model_validate({**values, "resize": arguments.resize, "border": arguments.border})


def write_experiment(bottle: Bottle, experiment: Experiment, files: Files, arguments: Arguments) -> list[str]:
    """Write checkpoint (where the model can be built again), TorchScript model, real arrays and spec; return the notes.

    Raises:
        DataValidationError: the model does not give one value a class, or takes other arrays than those given.
    """
    how = {"weights": files.weights, "options": arguments.source}
    with runner.run(import_source, how, reads=[files.weights], modules=arguments.modules) as done:
        source = done.value
        spec = spec_of(source, arguments, files.labels)
        check_classes(files, source.outputs[0])
        write_arrays(bottle, experiment, files, spec)
        bottle.put(experiment.torchscript, done.file(SCRIPT))
    if arguments.family in ("classifier", "vit", "factory"):
        bottle.put(experiment.best_checkpoint, files.weights)
    write_spec(bottle, experiment, arguments, spec)
    return source.notes


def write_own_graph(bottle: Bottle, experiment: Experiment, files: Files, arguments: Arguments) -> list[str]:
    """Write a graph of one's own as one file, real arrays and spec; return the notes.

    Raises:
        DataValidationError, ConfigurationError: see `take_graph`; or it takes no pictures, and there are some.
    """
    sizes = arguments.sizes if arguments.takes_pictures else arguments.input_shape
    how = {"graph": files.weights, "sizes": sizes and list(sizes), "exact": arguments.input_shape is not None}
    with runner.run(take_graph, how, reads=[files.weights, *external_data(files.weights)]) as done:
        found = done.value
        check_classes(files, found.outputs[0].shape)
        kind = "embedding" if not files.labels else "logits" if arguments.activation == "none" else "probabilities"
        values: dict[str, Any] = {
            "group": arguments.group, "architecture": arguments.architecture or arguments.family,
            "labels": files.labels, "output": kind, "input_name": found.input_name, "outputs": found.outputs,
            "batch": found.batch,
        }  # fmt: skip
        spec: Spec = ArraySpec(shape=found.shape, **values)
        if arguments.takes_pictures:
            pictured = tuple(own or given for own, given in zip(found.shape, arguments.sizes, strict=True))
            if pictured[0] not in (1, 3):
                raise ConfigurationError(f"{files.weights.name} takes {pictured[0]} channels: pictures have 1 or 3")
            spec = ModelSpec(preprocessing=preprocessing(arguments, pictured), **values)
        write_arrays(bottle, experiment, files, spec)
        bottle.put(experiment.own_graph, done.file(GRAPH))
    write_spec(bottle, experiment, arguments, spec)
    return found.notes


def external_data(graph: Path) -> list[Path]:
    """Return the files beside an ONNX file that hold weights of it.

    Raises:
        DataValidationError: it is not ONNX, or one of them is elsewhere or missing.
    """
    with runner.run(list_external_files, {"graph": graph}, reads=[graph]) as done:
        beside = [graph.parent / name for name in done.value]
    for path in beside:
        if path.is_symlink() or not path.is_file():
            raise DataValidationError(
                f"{graph.name} keeps weights in {path.name}, which is not in its folder: give both in one zip"
            )
    return beside


def check_classes(files: Files, given: tuple[int | None, ...]) -> None:
    """See that the first output, `given` without the batch, has one value a class.

    Raises:
        DataValidationError: it has not.
    """
    if files.labels and given != (len(files.labels),):
        shown = ", ".join("?" if size is None else str(size) for size in given)
        raise DataValidationError(
            f"{files.weights.name} gives [N, {shown}], but {len(files.labels)} classes are named: "
            f"{', '.join(files.labels)}"
        )


def write_spec(bottle: Bottle, experiment: Experiment, arguments: Arguments, spec: Spec) -> None:
    """Write the options and, last, the spec: an experiment without it does not exist."""
    bottle.write(experiment.config, arguments.model_dump_json(indent=2) + "\n")  # JSON is YAML
    bottle.write(experiment.spec, spec.model_dump_json(indent=2) + "\n")


def input_names(bottle: Bottle, group: str, snapshot_id: str | None, files: Files) -> list[str]:
    """Return the names of the inputs that verify, in the order that reference outputs have."""
    if snapshot_id is not None:
        return sorted(sample.source for sample in read_snapshot(bottle, group, snapshot_id).split("golden"))
    return array_names(len(read_arrays(files.arrays))) if files.arrays else []


def write_expected(bottle: Bottle, experiment: Experiment, path: Path, names: list[str]) -> None:
    """Put the reference outputs of the users' own code beside the experiment."""
    further = output_names(read_spec(bottle, experiment))[1:]
    with tempfile.TemporaryDirectory(prefix="nightshift-expected-") as folder:
        target = Path(folder) / "expected.npz"
        read_expected(path, names, further).write(target)
        bottle.put(experiment.expected, target)


def spec_of(source: Imported, arguments: Arguments, labels: list[str]) -> Spec:
    """Return the interface of an imported model."""
    group, architecture = arguments.group, arguments.architecture or arguments.family
    if arguments.family == "head":
        return HeadSpec(
            group=group, architecture=architecture, labels=labels, output=source.output, features=source.shape[0]
        )
    output = "logits" if labels and source.output == "embedding" else source.output
    names = names_of_outputs(arguments.named_outputs, output, len(source.outputs))
    tensors = [OutputTensor(name=name, shape=shape) for name, shape in zip(names, source.outputs, strict=True)]
    values: dict[str, Any] = {
        "group": group, "architecture": architecture, "labels": labels, "output": output, "batch": source.batch,
        "outputs": [] if names == [output] else tensors,
    }  # fmt: skip
    if arguments.takes_pictures:
        return ModelSpec(preprocessing=preprocessing(arguments, source.shape), **values)
    return ArraySpec(shape=source.shape, **values)


def write_arrays(bottle: Bottle, experiment: Experiment, files: Files, spec: Spec) -> None:
    """Put the real inputs of a model that takes no pictures beside the experiment.

    Raises:
        DataValidationError: they are no float32 arrays of its shape.
    """
    if files.arrays is None:
        return
    found, shape = read_arrays(files.arrays), spec.shape if isinstance(spec, ArraySpec) else input_shape(spec)
    fits = found.ndim == len(shape) + 1 and all(
        own in (None, size) for own, size in zip(shape, found.shape[1:], strict=False)
    )
    if found.dtype != np.float32 or not len(found) or not fits:
        sizes = ", ".join("?" if size is None else str(size) for size in shape)
        what = "head" if isinstance(spec, HeadSpec) else "model"
        raise DataValidationError(
            f"{files.arrays} holds {found.dtype} {list(found.shape)}, the {what} takes float32 [n, {sizes}]"
        )
    with tempfile.TemporaryDirectory(prefix="nightshift-inputs-") as folder:
        plain = Path(folder) / "inputs.npy"
        np.save(plain, found)
        bottle.put(experiment.embeddings if isinstance(spec, HeadSpec) else experiment.inputs, plain)


def read_arrays(path: Path) -> NDArray[Any]:
    """Return the array in an .npy file, or `inputs` of an .npz.

    Raises:
        DataValidationError: it holds something else.
    """
    try:
        found = np.load(path, allow_pickle=False, mmap_mode="r")
        if isinstance(found, np.ndarray):
            return found
        with found:
            return np.asarray(found["inputs"])
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataValidationError(f"{path} is no .npy file of numbers, and no .npz with inputs: {error}") from error


def write_pictures(bottle: Bottle, group: str, folder: Path) -> str:
    """Make a snapshot of a folder of pictures, all of them golden; return its id. A subfolder's name is the label.

    Raises:
        DataValidationError: there is no picture that can be decoded.
    """
    import cv2

    samples: dict[str, Sample] = {}
    refused: list[Refused] = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        content, name = path.read_bytes(), str(path.relative_to(folder))
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
        digest = hashlib.sha256(content).hexdigest()
        if decoded is None:
            refused.append(Refused(source=name, reason="corrupt", detail="cannot be decoded", sha256=digest))
            continue
        key = picture(digest, path.suffix.lower())
        bottle.write(key, content)
        label = path.parent.name if path.parent != folder else "unlabeled"
        samples[digest] = Sample(
            sha256=digest, path=key, label=label, split="golden", width=decoded.shape[1], height=decoded.shape[0],
            split_group=digest, source=name,
        )  # fmt: skip
    if not samples:
        raise DataValidationError(f"{folder} has no picture that can be decoded ({', '.join(SUFFIXES)})")
    return write_snapshot(bottle, group, list(samples.values()), refused).snapshot_id


if __name__ == "__main__":
    job.main(Arguments, run)
