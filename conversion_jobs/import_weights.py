"""Bring weights from elsewhere into the bottle as an experiment, so that they are exported, verified, served like ours.

The first task of a conversion alone: what follows reads the experiment that this writes, whatever the weights were.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from pathlib import Path

from conversion_jobs.detection.import_detector import write_detector
from conversion_jobs.onnx.graph import compact_json
from conversion_jobs.sandboxed.importing import SCRIPT, Imported, import_source
from conversion_jobs.verification.expected import read_expected
from jobkit import job
from jobkit.bottle import Bottle
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import IMPORTED, Experiment
from jobkit.files import sha256_of
from jobkit.local_file import local_file
from jobkit.model_spec import HeadSpec, ModelSpec, NonMaxSuppression, Preprocessing, Spec
from jobkit.paths import checked_name, experiments, picture
from jobkit.sandbox import runner
from jobkit.snapshot import Refused, Sample, read_snapshot, write_snapshot
from nightshift_common.options.weights import ImportOptions
from nightshift_common.picture_files import SUFFIXES

logger = logging.getLogger("conversion_jobs.import_weights")


class Arguments(job.Arguments, ImportOptions):
    """Make an experiment of a file of weights: its model, its classes, and real inputs to verify it with."""


class Result(job.Result):
    """The experiment and the snapshot to verify it with; a head has none."""

    experiment: str
    snapshot_id: str | None


def run(arguments: Arguments, context: job.Context) -> Result:
    """Load the weights once, to see that they are what they should be; write the experiment, its spec last."""
    group, bottle = checked_name(arguments.group, "group"), context.bottle
    if arguments.family not in ("head", "ultralytics"):
        preprocessing(arguments)  # refused before anything is written
    snapshot_id = arguments.snapshot_id
    if arguments.pictures is not None:
        snapshot_id = write_pictures(bottle, group, arguments.pictures)
    weights = local_file(arguments.weights, bottle)
    embeddings = local_file(arguments.embeddings, bottle) if arguments.embeddings else None
    expected = local_file(arguments.expected, bottle) if arguments.expected else None
    described = arguments.model_dump(
        mode="json", exclude={"weights", "pictures", "snapshot_id", "embeddings", "expected"}
    )
    identity = [sha256_of(weights), described, *(sha256_of(path) if path else None for path in (embeddings, expected))]
    mark = hashlib.sha256(compact_json(identity).encode()).hexdigest()[:12]
    experiment = Experiment(f"{experiments(group)}/{IMPORTED}{arguments.family}_{mark}")
    if arguments.family == "ultralytics" and not bottle.exists(experiment.spec):
        write_detector(
            bottle, experiment, weights, arguments.img_size, arguments.class_names, NonMaxSuppression.of(arguments)
        )
    elif not bottle.exists(experiment.spec):
        write_experiment(bottle, experiment, weights, embeddings, arguments)
    if expected is not None:
        write_expected(bottle, experiment, expected, input_names(bottle, group, snapshot_id, embeddings))
    inputs = f"snapshot {snapshot_id}" if snapshot_id else arguments.embeddings
    logger.info("%s, to be verified with %s", experiment.folder, inputs)
    return Result(experiment=experiment.folder, snapshot_id=snapshot_id)


def preprocessing(arguments: Arguments) -> Preprocessing:
    """Return how a picture becomes the model's input.

    Raises:
        ConfigurationError: mean and std are not one value a channel.
    """
    if not len(arguments.mean) == len(arguments.std) == arguments.channels:
        raise ConfigurationError(
            f"--mean and --std have {len(arguments.mean)} and {len(arguments.std)} values for {arguments.channels} "
            "channels"
        )
    height, width = arguments.img_size
    same = ("channels", "resize", "border", "mean", "std")
    return Preprocessing.model_validate(
        {"height": height, "width": width, **{name: getattr(arguments, name) for name in same}}
    )


def write_experiment(
    bottle: Bottle, experiment: Experiment, weights: Path, embeddings: Path | None, arguments: Arguments
) -> None:
    """Write checkpoint (of a classifier or an encoder), TorchScript model and spec; for a head its embeddings too.

    Raises:
        DataValidationError: the model does not give one value a class, or takes other embeddings than those given.
    """
    how = {"weights": weights, "options": arguments.source}
    with runner.run(import_source, how, reads=[weights], modules=arguments.modules) as done:
        source = done.value
        spec = spec_of(source, arguments)
        if embeddings is not None:
            check_embeddings(embeddings, source.shape[0])
        if spec.labels and source.given != (2, len(spec.labels)):
            raise DataValidationError(
                f"{weights.name} gives {list(source.given)} for 2 inputs, but {len(spec.labels)} classes are named: "
                f"{', '.join(spec.labels)}"
            )
        bottle.put(experiment.torchscript, done.file(SCRIPT))
    if embeddings is not None:
        bottle.put(experiment.embeddings, embeddings)
    if arguments.family in ("classifier", "vit"):
        bottle.put(experiment.best_checkpoint, weights)
    bottle.write(experiment.config, arguments.model_dump_json(indent=2) + "\n")  # JSON is YAML
    bottle.write(experiment.spec, spec.model_dump_json(indent=2) + "\n")


def input_names(bottle: Bottle, group: str, snapshot_id: str | None, embeddings: Path | None) -> list[str]:
    """Return the names of the inputs that verify, in the order that reference outputs have."""
    if snapshot_id is not None:
        return sorted(sample.source for sample in read_snapshot(bottle, group, snapshot_id).split("golden"))
    import numpy as np

    return [f"embedding {index}" for index in range(len(np.load(str(embeddings), allow_pickle=False, mmap_mode="r")))]


def write_expected(bottle: Bottle, experiment: Experiment, path: Path, names: list[str]) -> None:
    """Put the reference outputs of the users' own code beside the experiment."""
    with tempfile.TemporaryDirectory(prefix="nightshift-expected-") as folder:
        target = Path(folder) / "expected.npz"
        read_expected(path, names).write(target)
        bottle.put(experiment.expected, target)


def spec_of(source: Imported, arguments: Arguments) -> Spec:
    """Return the interface of an imported model."""
    group, architecture = arguments.group, arguments.architecture or arguments.family
    labels, output = arguments.class_names, source.output
    if arguments.family == "head":
        return HeadSpec(group=group, architecture=architecture, labels=labels, output=output, features=source.shape[0])
    how = preprocessing(arguments)
    return ModelSpec(group=group, architecture=architecture, labels=labels, output=output, preprocessing=how)


def check_embeddings(path: Path, features: int) -> None:
    """See that `path` holds embeddings float32 [n, features].

    Raises:
        DataValidationError: it holds something else.
    """
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataValidationError(f"{path} is no .npy file of numbers: {error}") from error
    if found.dtype != np.float32 or found.ndim != 2 or not len(found) or found.shape[1] != features:
        raise DataValidationError(
            f"{path} holds {found.dtype} {list(found.shape)}, the head takes float32 [n, {features}]"
        )


def write_pictures(bottle: Bottle, group: str, folder: Path) -> str:
    """Make a snapshot of a folder of pictures, all of them golden; return its id. A subfolder's name is the label.

    Raises:
        DataValidationError: there is no picture that can be decoded.
    """
    import cv2
    import numpy as np

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
