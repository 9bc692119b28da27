"""Where a package comes from, as an in-toto statement with SLSA's predicate: https://slsa.dev/spec/v1.0/provenance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from conversion_jobs.tensorrt.plan import PlanPaths
from jobkit.bottle import Bottle
from jobkit.experiment import Experiment
from jobkit.provenance import code
from nightshift_common.task_instance import TaskInstanceKey

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD = "urn:nightshift:release:1"
"""The kind of build: its external parameters are those of `conversion_jobs.publish_model`."""


class Release(BaseModel):
    """What is published, and by what right."""

    model_config = ConfigDict(frozen=True)

    model: str
    target: str
    model_file: str
    sha256: str
    """of the model file"""
    experiment: str
    snapshot_id: str | None
    record: str | None
    """the plan's record in the bottle"""
    evaluation: str | None
    """the evaluation that the gate judged: key in the bottle"""
    decision: str | None
    """the gate's"""
    reasons: str | None
    """the gate's"""


def statement(
    bottle: Bottle, release: Release, task_instance: TaskInstanceKey | None, runs: Mapping[str, str]
) -> dict[str, Any]:
    """Return the statement; `runs` are MLflow's run ids by what they are of.

    The verdicts of a verification stand in it as they lie in the bottle. What is not known is left out.
    """
    experiment = Experiment(release.experiment)
    given = release.model_dump(include={"model", "target", "experiment", "snapshot_id"}, exclude_none=True)
    metadata: dict[str, Any] = {"finishedOn": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    if task_instance is not None:
        metadata["invocationId"] = f"{task_instance.dag_id}/{task_instance.run_id}/{task_instance.task}"
    return {
        "_type": STATEMENT,
        "subject": [{"name": release.model_file, "digest": {"sha256": release.sha256}}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD,
                "externalParameters": given,
                "internalParameters": {"mlflow_runs": dict(runs)},
                "resolvedDependencies": _dependencies(bottle, experiment, release.snapshot_id),
            },
            "runDetails": {
                "builder": {"id": "urn:nightshift:conversion_jobs.publish_model"},
                "metadata": metadata,
                "byproducts": _verdicts(bottle, experiment, release),
            },
        },
    }


def _dependencies(bottle: Bottle, experiment: Experiment, snapshot_id: str | None) -> list[dict[str, Any]]:
    """Return code and locked requirements, of the training where it left them and of this job, and the snapshot."""
    trained = json.loads(bottle.read(experiment.metrics)).get("provenance") if bottle.exists(experiment.metrics) else {}
    found = [*_code("training", trained or {}), *_code("release", code("jobs"))]
    if snapshot_id is not None:
        found.append({"name": "snapshot", "uri": f"urn:nightshift:snapshot:{snapshot_id}"})
    return found


def _code(what: str, known: Mapping[str, Any]) -> list[dict[str, Any]]:
    commit, lock = known.get("commit"), known.get("lock_sha256")
    found: list[dict[str, Any]] = []
    if commit:
        dirty = {"annotations": {"changed": True}} if commit.endswith("-dirty") else {}
        found.append({"name": f"code of the {what}", "digest": {"gitCommit": commit.removesuffix("-dirty")}, **dirty})
    if lock:
        found.append({"name": f"locked requirements of the {what}", "digest": {"sha256": lock}})
    return found


def _verdicts(bottle: Bottle, experiment: Experiment, release: Release) -> list[dict[str, Any]]:
    files = {"verify_onnx": experiment.verification}
    if release.record is not None:
        files["verify_plan"] = PlanPaths(release.record.rpartition("/")[0]).verification
    found = [_verdict(bottle, name, key, ("sha256", "passed", "pictures", "verdicts")) for name, key in files.items()]
    if release.evaluation is not None:
        found.append(_verdict(bottle, "evaluate", release.evaluation, ("model_name", "pictures")))
    if release.decision is not None:
        said = {"decision": release.decision, "reasons": release.reasons}
        digest = {"sha256": hashlib.sha256(json.dumps(said).encode()).hexdigest()}
        found.append({"name": "gate", "digest": digest, "annotations": said})
    return found


def _verdict(bottle: Bottle, name: str, key: str, fields: Sequence[str]) -> dict[str, Any]:
    content = bottle.read(key)
    known = json.loads(content)
    return {
        "name": name,
        "uri": f"urn:nightshift:bottle:{key}",
        "digest": {"sha256": hashlib.sha256(content).hexdigest()},
        "annotations": {field: known[field] for field in fields if field in known},
    }
