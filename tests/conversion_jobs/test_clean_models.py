"""What the nightly job deletes, against the real storage: what nothing needs, evaluations neither."""

from __future__ import annotations

from functools import partial

import pytest

from jobkit.errors import ConfigurationError, JobError, TransientError
from jobkit.model_storage import ModelStorage
from tests.conversion_jobs import serving
from tests.conversion_jobs.conftest import Trained
from tests.conversion_jobs.serving import Serving
from training_jobs import clean_models
from training_jobs.scoring.history import write_best


@pytest.fixture
def four_versions(verified: Trained, served: Serving, model: str) -> Trained:
    """The first in production, the third the best so far."""
    package = verified.package
    for number in (1, 2, 3, 4):
        verified.package = partial(package, max_batch_size=number)  # type: ignore[method-assign]
        assert verified.publish(model).version == f"0.0.{number}"
        if number == 1:
            verified.deploy("0.0.1", model)
    write_best(verified.bottle, "digits", model, "0.0.3")
    return verified


def versions(served: Serving, model: str) -> list[str]:
    return [record["version"] for record in served.get(f"/models/{model}/versions").json()]


def clean(trained: Trained, **options: object) -> clean_models.Result:
    return clean_models.run(clean_models.Arguments(**options), trained.context)


def test_what_nothing_needs_is_deleted_once_and_a_dry_run_tells_it_before(
    four_versions: Trained,
    served: Serving,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_TOKEN", serving.TOKENS["retention"])
    assert model not in clean(four_versions).deleted, "all are young"
    said = clean(four_versions, older_than_days=0, dry_run=True)
    assert said.deleted[model] == ["0.0.2", "0.0.4"]
    assert versions(served, model) == ["0.0.1", "0.0.2", "0.0.3", "0.0.4"]
    assert f"{model} 0.0.3 is kept: evaluations compare with it: the best so far" in caplog.text
    sizes = {
        version: sum(
            file["size"] for file in served.get(f"/models/{model}/versions/{version}").json()["files"].values()
        )
        for version in ("0.0.2", "0.0.4")
    }
    done = clean(four_versions, older_than_days=0)
    assert done.deleted[model] == ["0.0.2", "0.0.4"]
    assert done.freed_bytes >= sum(sizes.values()) > 0
    assert versions(served, model) == ["0.0.1", "0.0.3"]
    assert model not in clean(four_versions, older_than_days=0).deleted


def test_a_version_that_comes_into_production_meanwhile_stays(
    four_versions: Trained, served: Serving, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ModelStorage() as storage:
        unneeded = storage.unneeded(model, 0)
    assert unneeded[0] == ["0.0.2", "0.0.3", "0.0.4"]
    monkeypatch.setattr(ModelStorage, "models", lambda _: [model])
    monkeypatch.setattr(ModelStorage, "unneeded", lambda *_: unneeded)
    four_versions.deploy("0.0.4", model)
    assert clean(four_versions, older_than_days=0).deleted == {model: ["0.0.2"]}
    assert versions(served, model) == ["0.0.1", "0.0.3", "0.0.4"]


def test_a_model_that_fails_holds_up_no_other_one_and_fails_the_job(
    four_versions: Trained, served: Serving, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unneeded = ModelStorage.unneeded

    def failing(storage: ModelStorage, name: str, days: float | None) -> object:
        if name == "another":
            raise TransientError("the model storage did not answer")
        return unneeded(storage, name, days)

    monkeypatch.setattr(ModelStorage, "models", lambda _: ["another", model])
    monkeypatch.setattr(ModelStorage, "unneeded", failing)
    with pytest.raises(TransientError, match="1 of 2 models could not be cleaned; the first: the model storage did"):
        clean(four_versions, older_than_days=0)
    assert versions(served, model) == ["0.0.1", "0.0.3"]


@pytest.mark.parametrize("other", ["deploy", "publish", "airflow"])
def test_no_other_job_may_delete(
    four_versions: Trained, served: Serving, model: str, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_TOKEN", serving.TOKENS[other])
    with pytest.raises(JobError, match=f"the token '{other}' may .*; this call needs 'delete'") as refused:
        clean(four_versions, older_than_days=0)
    assert isinstance(refused.value, ConfigurationError)
    assert len(versions(served, model)) == 4
