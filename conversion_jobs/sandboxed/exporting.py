"""Weights become ONNX."""

from __future__ import annotations

from pathlib import Path

from conversion_jobs.families.sources import SourceFile, load_experiment, load_source
from conversion_jobs.onnx.export import export, export_module
from conversion_jobs.onnx.exported import Exported
from conversion_jobs.onnx.graph import compact_json
from conversion_jobs.sandboxed.importing import ImportedDetector
from jobkit.model_spec import NonMaxSuppression, Preprocessing, Spec, described_input
from nightshift_common.options.conversion import Exporter
from nightshift_common.options.weights import SourceOptions

GRAPH = "model.onnx"


class ExportedDetector(ImportedDetector):
    """What a detector's checkpoint holds, and how its graph was made."""

    made: Exported


def export_experiment(
    work: Path, source: SourceFile, spec: Spec, opset: int, origin: dict[str, str], exporter: Exporter
) -> Exported:
    """Write the model of an experiment to `work`; see `export`."""
    return export(load_experiment(source, spec), spec, work / GRAPH, opset, origin, exporter)


def export_file(
    work: Path, weights: Path, options: SourceOptions, inside: Preprocessing | None, opset: int,
    metadata: dict[str, str], exporter: Exporter,
) -> Exported:  # fmt: skip
    """Write the model in `weights` to `work`, behind the normalization `inside` where there is one.

    Raises:
        DataValidationError, ConfigurationError: see `load_source`, `export_module`.
    """
    from conversion_jobs.onnx.normalization import normalized

    source = load_source(weights, options)
    module = normalized(source.module, inside) if inside else source.module
    return export_module(
        module, source.shape, work / GRAPH, output=source.output, opset=opset, metadata=metadata, exporter=exporter,
    )  # fmt: skip


def export_detector_file(
    work: Path, weights: Path, options: SourceOptions, opset: int, metadata: dict[str, str], exporter: Exporter
) -> ExportedDetector:
    """Write the Ultralytics detector in `weights` to `work`.

    Raises:
        DataValidationError, ConfigurationError: see `load_detector`, `export_detector`.
    """
    from conversion_jobs.detection.export import export_detector
    from jobkit.detection.torchscript import detector_spec, traced
    from jobkit.detection.ultralytics_weights import load_detector

    detector = load_detector(weights, options.img_size)
    spec = detector_spec(detector.task, detector.labels, "", options.img_size, NonMaxSuppression.of(options))
    told = {"labels": compact_json(spec.labels)}
    told |= {name: compact_json(value) for name, value in described_input(spec).items()}
    made = export_detector(traced(detector, options.img_size), spec, work / GRAPH, opset, metadata | told, exporter)
    return ExportedDetector(task=detector.task, labels=detector.labels, made=made)
