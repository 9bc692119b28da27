"""Where things lie in the bottle: seed_003's layout, with snapshots beside it. All functions return keys."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from jobkit.errors import ConfigurationError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def checked_name(name: str, what: str = "name") -> str:
    """Return `name` if it can stand in a path, a Triton model name and an MLflow name."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{what} {name!r} is not valid: letters, digits, '_', '-', '.', at most 100, no leading sign"
        )
    return name


def picture(sha256: str, suffix: str) -> str:
    """Return the key of a picture in the common pool, by its content."""
    return f"pictures/{sha256[:2]}/{sha256}{suffix}"


def picset_meta(group: str, picset: str, name: str) -> str:
    """Return the key of one metadata file of a picset."""
    return f"meta/{checked_name(group, 'group')}/{checked_name(picset, 'picset')}/{name}.json"


def dataset(group: str) -> str:
    """Return the key of seed_003's summary of a group."""
    return f"datasets/{checked_name(group, 'group')}.json"


@dataclass(frozen=True)
class SnapshotPaths:
    """Files of one snapshot; `summary` is written last: a snapshot without it does not exist."""

    group: str
    snapshot_id: str

    @property
    def folder(self) -> str:
        """The snapshot's folder."""
        return f"snapshots/{checked_name(self.group, 'group')}/{checked_name(self.snapshot_id, 'snapshot')}"

    @property
    def manifest(self) -> str:
        """One JSON object a line, one line a picture."""
        return f"{self.folder}/manifest.jsonl"

    @property
    def refused(self) -> str:
        """One JSON object a line: what was refused, and why."""
        return f"{self.folder}/refused.jsonl"

    @property
    def summary(self) -> str:
        """Labels, counts, and what was refused by reason."""
        return f"{self.folder}/summary.json"


@dataclass(frozen=True)
class ExperimentPaths:
    """seed_003's experiment folder: `models/<group>/v__{n}_{mode}_{arch}_{batch}_{decay}`."""

    folder: str

    @property
    def group(self) -> str:
        """The group that it was trained for."""
        return PurePosixPath(self.folder).parts[1]

    @property
    def best_checkpoint(self) -> str:
        """Weights of the best epoch."""
        return f"{self.folder}/checkpoints/best.ckpt"

    @property
    def last_checkpoint(self) -> str:
        """State of the last finished epoch; training resumes from it."""
        return f"{self.folder}/checkpoints/last.ckpt"

    @property
    def config(self) -> str:
        """The configuration as run."""
        return f"{self.folder}/config.yaml"

    @property
    def metrics(self) -> str:
        """Metrics of the best epoch and what reproduces the run."""
        return f"{self.folder}/metrics.json"

    @property
    def spec(self) -> str:
        """The model's interface (`jobkit.modelspec.ModelSpec`)."""
        return f"{self.folder}/model.json"

    @property
    def torchscript(self) -> str:
        """The model of the best epoch as TorchScript: float32 [N, C, H, W] -> logits."""
        return f"{self.folder}/torchscripts/model.pt"

    @property
    def run(self) -> str:
        """Which task instance trains it, and on what."""
        return f"{self.folder}/run.json"

    @property
    def onnx(self) -> str:
        """The exported graph."""
        return f"{self.folder}/onnx/model.onnx"


def experiments(group: str) -> str:
    """Return the folder of a group's experiments."""
    return f"models/{checked_name(group, 'group')}"


def inference_model(group: str) -> str:
    """Return the folder of a group's packaged model: meta.json, model.onnx|plan, model_onnx.zip, model_trt.zip."""
    return f"inference_models/{checked_name(group, 'group')}/inference_model"
