"""What a model was made of, as CycloneDX 1.6 (https://cyclonedx.org/specification/overview/): its `sbom.cdx.json`.

It is written here, and not by CycloneDX's library for Python, which has no model cards and stamps each document with a
time: the same model has to give the same bytes. The tests check it with that library's schema.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

SBOM_FILE = "sbom.cdx.json"
MODEL, DATA = "model", "training-data"
NAMESPACE = uuid.UUID("6b0d0a1e-6d0b-5c0f-8d0f-0b1f6c2f7a11")  # of serial numbers; any constant does


@dataclass(frozen=True)
class ModelFacts:
    """What is known about a model that is packaged."""

    name: str
    experiment: str
    architecture: str
    task: str
    files: Mapping[str, str]
    """Name -> sha256; the first one is what is served."""
    inputs: Sequence[str]
    outputs: Sequence[str]
    snapshot_id: str | None
    provenance: Mapping[str, Any]
    """`jobkit.provenance.provenance` of the training; empty for weights of another origin."""
    initial_weights: Mapping[str, str] = field(default_factory=dict)
    """`jobkit.model_spec.WeightsOrigin` of what the training started from; empty where that is nothing, or unknown."""


def model_sbom(facts: ModelFacts) -> str:
    """Return the document: the model with its card, its files, its training data, and the packages that trained it.

    The same facts give the same text: it holds no time, and its serial number is made from the content.
    """
    served = next(iter(facts.files.values()))
    snapshot = facts.snapshot_id
    card: dict[str, Any] = {
        "task": facts.task,
        "modelArchitecture": facts.architecture,
        "inputs": [{"format": text} for text in facts.inputs],
        "outputs": [{"format": text} for text in facts.outputs],
    }
    components = [{"type": "file", "bom-ref": name, "name": name, "hashes": _sha256(digest)}
                  for name, digest in facts.files.items()]  # fmt: skip
    if snapshot is not None:
        card["datasets"] = [{"ref": DATA}]
        dataset = {"type": "dataset", "name": snapshot}
        components.append({"type": "data", "bom-ref": DATA, "name": "snapshot", "version": snapshot, "data": [dataset]})
    properties = {"experiment": facts.experiment} | {
        name: str(facts.provenance[name])
        for name in ("commit", "lock_sha256", "python", "cuda", "command", "seed")
        if facts.provenance.get(name) is not None
    }
    model: dict[str, Any] = {}
    if origin := facts.initial_weights:
        ancestor = {
            "type": "machine-learning-model",
            "name": origin["name"],
            "hashes": _sha256(origin["sha256"]),
            "licenses": [{"license": {"name": origin["license"]}}],  # by name: not every publisher's has an SPDX id
            "properties": [{"name": "nightshift:source", "value": origin["source"]}],
        }
        model["pedigree"] = {"ancestors": [ancestor]}
    content: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "machine-learning-model",
                "bom-ref": MODEL,
                "name": facts.name,
                "version": facts.experiment.rpartition("/")[2],
                "hashes": _sha256(served),
                **model,
                "modelCard": {"modelParameters": card},
                "properties": [{"name": f"nightshift:{name}", "value": text} for name, text in properties.items()],
            }
        },
        "components": components,
        "dependencies": [{"ref": MODEL, "dependsOn": [component["bom-ref"] for component in components]}],
    }
    if packages := facts.provenance.get("packages"):
        made_with = [_package(name, version) for name, version in sorted(packages.items())]
        content["formulation"] = [{"bom-ref": "training-environment", "components": made_with}]
    serial = uuid.uuid5(NAMESPACE, json.dumps(content, sort_keys=True))
    return json.dumps(content | {"serialNumber": f"urn:uuid:{serial}"}, indent=1) + "\n"


def _sha256(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest}]


def _package(name: str, version: str) -> dict[str, str]:
    """Return a package of Python's; the form of its purl is that of https://github.com/package-url/purl-spec."""
    purl = f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{quote(version, safe='')}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
