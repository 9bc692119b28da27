"""Run a detector on the pictures of a snapshot, and set what it finds beside the objects that are there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError
from jobkit.model_spec import DetectorSpec, prepare, resized
from jobkit.progress import Progress
from jobkit.snapshot import Sample
from nightshift_common.boxes import Found, in_picture, suppressed
from nightshift_common.options.detector import DetectorEvaluationOptions
from training_jobs.scoring import masks
from training_jobs.scoring.matching import LEAST_SCORE, Compared, compared
from training_jobs.scoring.models import Model

Array = NDArray[np.float32]
BATCH = 16
THREADS = 4  # decode the next pictures; OpenCV lets go of the interpreter lock
OUTPUTS = {"detect": 1, "segment": 3}


def predict(
    bottle: Bottle, samples: list[Sample], model: Model[DetectorSpec], labels: list[str],
    options: DetectorEvaluationOptions,
) -> list[Compared]:  # fmt: skip
    """Return what the model finds in each picture beside its objects; classes are matched by name with `labels`.

    A segmenter is compared by its masks, at the resolution of the picture; a detector by its boxes.

    Raises:
        DataValidationError: the outputs do not fit the model's own spec, or are not finite; a picture has no objects
            listed, or a segmenter is asked about objects without polygons.
    """
    check_objects(samples, model.spec.task)
    spec, progress = model.spec, Progress(f"evaluate {model.version}", len(samples), "pictures")
    numbers = np.array([labels.index(label) if label in labels else -1 for label in spec.labels], np.int64)
    found: list[Compared] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(samples), BATCH):
            batch = samples[start : start + BATCH]
            inputs = np.stack(list(pool.map(lambda s: prepare(bottle.local(s.path), spec.preprocessing), batch)))
            outputs = _run(model, inputs)
            for index, sample in enumerate(batch):
                found.append(_beside(sample, [output[index] for output in outputs], spec, numbers, labels, options))
            progress.advance(len(batch))
    return found


def check_objects(samples: list[Sample], task: str) -> None:
    """See that the pictures say what is in them, for `segment` with polygons.

    Raises:
        DataValidationError: they do not.
    """
    if unlisted := [s.source for s in samples if s.objects is None]:
        raise DataValidationError(
            f"{len(unlisted)} of {len(samples)} pictures list no objects (for example {unlisted[0]}): snapshots "
            "for detectors are made by training_jobs.pull_annotations"
        )
    if task == "segment":
        objects = [(s.source, o) for s in samples for o in s.objects or () if not o.ignore]
        if bare := [source for source, found in objects if not found.polygons]:
            raise DataValidationError(
                f"{len(bare)} of {len(objects)} objects have no polygons (for example in {bare[0]}): a segmenter needs "
                "them; task detect does not"
            )


def _run(model: Model[DetectorSpec], inputs: Array) -> list[Array]:
    try:
        outputs = model.outputs(inputs)
    except Exception as error:  # PyTorch and ONNX Runtime raise what they like on inputs that do not fit
        reason = str(error).strip().splitlines()[-1:]
        raise DataValidationError(f"{model.version} fails on inputs of shape {list(inputs.shape)}: {reason}") from error
    spec, first = model.spec, outputs[0]
    raw = first.ndim == 3 and first.shape[1] == 4 + len(spec.labels)
    suppressed_inside = spec.suppression is not None and first.ndim == 3 and first.shape[2] == 6
    if len(outputs) != OUTPUTS[spec.task] or len(first) != len(inputs) or not (raw or suppressed_inside):
        shapes = ", ".join(str(list(output.shape)) for output in outputs)
        raise DataValidationError(
            f"{model.version} gives outputs {shapes}, but its spec says {spec.task} of {len(spec.labels)} classes"
        )
    if not all(np.isfinite(output).all() for output in outputs):
        raise DataValidationError(f"{model.version} gives outputs that are not finite numbers")
    return outputs


def _found(first: Array, spec: DetectorSpec, options: DetectorEvaluationOptions) -> Found:
    """Return the boxes of one picture's first output; the graph's own suppression stays as it serves."""
    how = spec.suppression
    if how is not None and first.shape[1] == 6:
        rows = np.flatnonzero(first[:, 4] > 0)[: options.max_detections]
        return Found(first[rows], rows)
    if how is not None:
        return suppressed(first, how.confidence_threshold, how.iou_threshold, how.max_detections)
    return suppressed(first, LEAST_SCORE, options.nms_iou_threshold, options.max_detections)


def _beside(
    sample: Sample, outputs: list[Array], spec: DetectorSpec, numbers: NDArray[np.int64], labels: list[str],
    options: DetectorEvaluationOptions,
) -> Compared:  # fmt: skip
    objects, how, size = sample.objects or (), spec.preprocessing, (sample.height, sample.width)
    found = _found(outputs[0], spec, options)
    boxes = in_picture(found.boxes[:, :4], size, resized(*size, how), (how.height, how.width))
    listed = np.array([o.box for o in objects], np.float64).reshape(-1, 4)
    true_boxes = np.concatenate([listed[:, :2], listed[:, :2] + listed[:, 2:]], axis=1)
    ignored = np.array([o.ignore for o in objects], bool)
    true_labels = np.array([labels.index(o.label) if o.label in labels else -2 for o in objects], np.int64)
    scores, classes = found.boxes[:, 4].astype(np.float64), numbers[found.boxes[:, 5].astype(np.int64)]
    by_boxes = compared(scores, classes, boxes, true_labels, true_boxes, ignored)
    if spec.task == "detect":
        return by_boxes
    order = np.argsort(-scores, kind="stable")
    chosen = outputs[1][found.anchors] if outputs[0].shape[1] == 6 else outputs[1][:, found.anchors].T
    drawn = masks.of_prototypes(chosen[order], outputs[2], boxes[order], size, how)
    there = [
        masks.of_polygons(o.polygons, size) if o.polygons else masks.of_box(box, size)
        for o, box in zip(objects, true_boxes, strict=True)
    ]
    return Compared(
        by_boxes.scores, by_boxes.labels, by_boxes.boxes, np.array([mask.area for mask in drawn], np.float64),
        true_labels, true_boxes, np.array([mask.area for mask in there], np.float64), ignored,
        masks.overlap(drawn, there, ignored),
    )  # fmt: skip
