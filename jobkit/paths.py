"""Where things lie in the bottle, in the layout of the older scripts, with snapshots beside it.

All functions return keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobkit.errors import ConfigurationError
from nightshift_common.names import NAME_RULE, is_name


def checked_name(name: str, what: str = "name") -> str:
    """Return `name` if it can stand in a path, a Triton model name and an MLflow name.

    Raises:
        ConfigurationError: it cannot.
    """
    if not is_name(name):
        raise ConfigurationError(f"{what} {name!r} is not valid: {NAME_RULE}")
    return name


def picture(sha256: str, suffix: str) -> str:
    """Return the key of a picture in the common pool, by its content."""
    return f"pictures/{sha256[:2]}/{sha256}{suffix}"


def picset_meta(group: str, picset: str, name: str) -> str:
    """Return the key of one metadata file of a picset."""
    return f"meta/{checked_name(group, 'group')}/{checked_name(picset, 'picset')}/{name}.json"


def dataset(group: str) -> str:
    """Return the key of a group's summary, which the older scripts read."""
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


def last_snapshot_key(group: str) -> str:
    """Return the key that names the snapshot which was pulled last, new or not."""
    return f"snapshots/{checked_name(group, 'group')}/last.json"


def label_reviews(group: str) -> str:
    """Return the folder of what people decided about a group's labels, a file for each time."""
    return f"reviews/{checked_name(group, 'group')}"


def experiments(group: str) -> str:
    """Return the folder of a group's experiments."""
    return f"models/{checked_name(group, 'group')}"


def inference_model(group: str) -> str:
    """Return the folder of a group's packaged model: meta.json, model.onnx|plan, model_onnx.zip, model_trt.zip."""
    return f"inference_models/{checked_name(group, 'group')}/inference_model"
