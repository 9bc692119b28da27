"""Deployment sends golden pictures as they are, and refuses a package that makes something else of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from conversion_jobs import deploy_model
from jobkit.answers import read_answers
from jobkit.errors import DataValidationError
from jobkit.experiment import Experiment
from tests.conversion_jobs.conftest import Trained
from tests.conversion_jobs.serving import Serving
from training_jobs import evaluate

Change = Callable[[dict[str, Any]], None]


def evaluated(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> str:
    """Evaluate the candidate alone; return the key of its answers."""
    arguments = evaluate.Arguments(
        group=Experiment(trained.experiment).group, snapshot_id=trained.snapshot_id, experiment=trained.experiment,
        model_name="digits",
    )  # fmt: skip
    with monkeypatch.context() as alone:
        alone.delenv("NIGHTSHIFT_STORAGE_URL")
        result = evaluate.run(arguments, trained.context)
    assert result.answers is not None
    return result.answers


def change_spec(trained: Trained, change: Change) -> None:
    spec = Experiment(trained.experiment).spec
    values = json.loads(trained.bottle.read(spec))
    change(values)
    trained.bottle.write(spec, json.dumps(values))
    trained.export()  # labels and preprocessing are inside the graph, too
    trained.verify()


def swap_labels(values: dict[str, Any]) -> None:
    values["labels"][0], values["labels"][1] = values["labels"][1], values["labels"][0]


def other_mean(values: dict[str, Any]) -> None:
    values["preprocessing"]["mean"] = [0.1, 0.1, 0.1]


def test_a_version_whose_answers_to_raw_pictures_are_those_of_evaluation_is_deployed(
    verified: Trained, served: Serving, model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    answers = evaluated(verified, monkeypatch)
    published = verified.publish(model)
    assert verified.deploy(published.version, model, answers=answers).version == published.version
    for name in (f"{model}__candidate_jpeg", f"{model}_jpeg"):
        assert f"{name}: 18 golden pictures as they are" in caplog.text
    assert f"{model}_jpeg" in served.models_in_triton()
    assert f"{model}__candidate_jpeg" not in served.models_in_triton()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (swap_labels, r"the labels: class 0 is 'cross', was 'circle', class 1 is 'circle', was 'cross'"),
        (other_mean, r"mean is \(0.1, 0.1, 0.1\), was \(0.485, 0.456, 0.406\)"),
    ],
)
def test_a_package_with_other_labels_or_another_mean_than_was_evaluated_is_refused(
    verified: Trained, served: Serving, model: str, monkeypatch: pytest.MonkeyPatch, change: Change, says: str
) -> None:
    answers = evaluated(verified, monkeypatch)
    change_spec(verified, change)
    published = verified.publish(model)
    with pytest.raises(DataValidationError, match=says) as refused:
        verified.deploy(published.version, model, answers=answers)
    assert refused.value.exit_code == 3
    monkeypatch.setattr(deploy_model, "check_spec", lambda *_: None)  # the answers alone tell it, too
    says = rf"{model}__candidate_jpeg answers otherwise than evaluation found for \d+ of 18 golden pictures"
    with pytest.raises(DataValidationError, match=says):
        verified.deploy(published.version, model, answers=answers)
    assert served.get(f"/models/{model}/champion").status_code == 404
    assert not {f"{model}__candidate", f"{model}__candidate_jpeg"} & set(served.models_in_triton())


def test_where_triton_takes_no_pictures_they_are_prepared_as_the_package_says(
    verified: Trained, served: Serving, model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    answers = evaluated(verified, monkeypatch)
    monkeypatch.setattr("conversion_jobs.triton.served_pictures.ENTRY", "_none")
    assert verified.deploy(verified.publish(model).version, model, answers=answers).version == "0.0.1"
    assert f"prepared here since Triton serves no {model}_none" in caplog.text


def test_answers_are_chosen_evenly_over_what_was_found(verified: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_URL", "http://127.0.0.1:1")
    answers = read_answers(verified.bottle, evaluated(verified, monkeypatch))
    assert len(answers.pictures) == 18
    found = set(answers.probabilities.argmax(1).tolist())
    assert set(answers.some(6).probabilities.argmax(1).tolist()) == found
    assert len(answers.some(6).pictures) == 6
    assert answers.some(100).sources == [
        answers.sources[i] for i in answers.probabilities.argmax(1).argsort(kind="stable")
    ]


def test_answers_that_are_none_are_named(verified: Trained) -> None:
    verified.bottle.write("evaluations/none.npz", b"no answers")
    with pytest.raises(DataValidationError, match=r"none.npz is not what evaluate writes"):
        read_answers(verified.bottle, "evaluations/none.npz")
