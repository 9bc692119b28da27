"""What a model was made of, judged by CycloneDX's own schema and by another implementation of package URLs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from jobkit.sbom import ModelFacts, model_sbom

FACTS = ModelFacts(
    name="digits",
    experiment="models/digits/v__1_train_resnet18_8_0.1",
    architecture="resnet18",
    task="classification",
    files={"model.plan": "a" * 64, "model.onnx": "b" * 64},
    inputs=["float32 [-1, 3, 32, 32]"],
    outputs=["float32 [-1, 10]"],
    snapshot_id="2026-11-21-1",
    provenance={
        "commit": "c" * 40,
        "lock_sha256": "d" * 64,
        "seed": 0,
        "cuda": None,
        "packages": {"torch": "2.13.0+cpu", "PyYAML": "6.0.3", "ruamel.yaml_clib": "0.2!1"},
    },
)
IMPORTED = replace(FACTS, snapshot_id=None, provenance={})
ORIGIN = {"name": "resnet18.a1_in1k", "source": "hub:timm/x", "license": "cc-by-nc-4.0", "sha256": "e" * 64}
TUNED = replace(FACTS, initial_weights=ORIGIN)


@pytest.mark.parametrize("facts", [FACTS, IMPORTED, TUNED], ids=["trained", "of another origin", "tuned"])
def test_the_document_is_valid_and_the_same_for_the_same_facts(facts: ModelFacts) -> None:
    text = model_sbom(facts)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert model_sbom(facts) == text
    other = model_sbom(replace(facts, name="letters"))
    assert json.loads(other)["serialNumber"] != json.loads(text)["serialNumber"]


def test_it_names_what_is_served_and_what_trained_it() -> None:
    content = json.loads(model_sbom(FACTS))
    model = content["metadata"]["component"]
    assert model["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    properties = {entry["name"]: entry["value"] for entry in model["properties"]}
    assert properties["nightshift:commit"] == "c" * 40
    assert properties["nightshift:lock_sha256"] == "d" * 64
    assert properties["nightshift:seed"] == "0" and "nightshift:cuda" not in properties
    assert content["dependencies"] == [{"ref": "model", "dependsOn": ["model.plan", "model.onnx", "training-data"]}]


def test_it_says_what_a_model_was_tuned_from_and_under_which_license() -> None:
    [ancestor] = json.loads(model_sbom(TUNED))["metadata"]["component"]["pedigree"]["ancestors"]
    assert ancestor["licenses"] == [{"license": {"name": "cc-by-nc-4.0"}}]
    assert ancestor["hashes"] == [{"alg": "SHA-256", "content": "e" * 64}]
    assert "pedigree" not in json.loads(model_sbom(FACTS))["metadata"]["component"]


def test_packages_have_the_addresses_that_another_library_makes() -> None:
    [made] = json.loads(model_sbom(FACTS))["formulation"]
    for package in made["components"]:
        ours, named = PackageURL.from_string(package["purl"]), package["name"].replace(".", "-")
        assert ours == PackageURL("pypi", name=named, version=package["version"])
    assert "formulation" not in json.loads(model_sbom(IMPORTED))
