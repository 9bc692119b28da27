"""Each job works with the token of its kind, and with no scope less: against the real storage and Triton."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobkit.errors import ConfigurationError
from jobkit.job import Context
from jobkit.model_spec import ModelSpec
from nightshift_common.exit_codes import ExitCode
from nightshift_common.storage_tokens import TOKENS
from nightshift_common.task_instance import TaskInstanceKey
from tests.conversion_jobs import serving
from tests.conversion_jobs.conftest import Trained
from tests.conversion_jobs.serving import Serving
from training_jobs import clean_models
from training_jobs.scoring.models import load_champion


@dataclass
class Jobs:
    """The jobs that use the storage, each with what it needs from those before it."""

    trained: Trained
    model: str
    folder: Path

    def publish(self) -> object:
        return self.trained.publish(self.model)

    def deploy(self) -> object:
        return self.trained.deploy("0.0.1", self.model)

    def retention(self) -> object:
        return clean_models.run(clean_models.Arguments(older_than_days=0), self.trained.context).deleted

    def evaluate(self) -> object:
        return load_champion(self.model, self.folder, ModelSpec)


@pytest.fixture
def jobs(verified: Trained, served: Serving, model: str, tmp_path: Path) -> Jobs:
    """With a model that the operator has published and deployed."""
    found = Jobs(verified, model, tmp_path)
    found.publish()
    found.deploy()
    return found


@pytest.mark.parametrize(
    ("name", "scope"), [(name, s) for name in ("evaluate", "publish", "deploy", "retention") for s in TOKENS[name]]
)
def test_a_job_ends_well_with_its_token_and_needs_each_of_its_scopes(
    jobs: Jobs, name: str, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job: Callable[[], object] = getattr(jobs, name)
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_TOKEN", serving.TOKENS[name])
    assert job() is not None
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_TOKEN", serving.LACKING[scope])
    with pytest.raises(
        ConfigurationError, match=rf"answered 403 .*the token 'no-{scope}' may .* needs '{scope}'"
    ) as end:
        job()
    assert end.value.exit_code is ExitCode.CONFIGURATION


@pytest.mark.parametrize(("job", "another"), [("publish", "evaluate"), ("publish", "deploy"), ("deploy", "publish")])
def test_a_job_with_the_token_of_another_kind_is_told_which_token_lacks_what(
    jobs: Jobs, job: str, another: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_TOKEN", serving.TOKENS[another])
    with pytest.raises(ConfigurationError, match=f"the token '{another}' may .*; this call needs '"):
        getattr(jobs, job)()


def test_the_history_of_a_night_names_its_jobs_tokens(
    jobs: Jobs, served: Serving, mlflow_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = jobs.model = f"{jobs.model}x"
    jobs.trained.context = Context(tmp_path, TaskInstanceKey(f"retrain_{model}", "scheduled__1", "deploy_model"))
    jobs.trained.context.bottle = jobs.trained.bottle
    for name in ("publish", "deploy"):
        monkeypatch.setenv("NIGHTSHIFT_STORAGE_TOKEN", serving.TOKENS[name])
        getattr(jobs, name)()
    assert served.get(f"/models/{model}/versions/0.0.1").json()["published_by"] == "publish"
    (row,) = served.get(f"/history/{model}").json()
    assert (row["actor"], row["on_behalf_of"], row["run_id"]) == ("deploy", f"retrain_{model}", "scheduled__1")
