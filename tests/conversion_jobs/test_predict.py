"""Asking the served champion about one picture."""

from __future__ import annotations

import pytest

from conversion_jobs import predict
from jobkit.errors import ConfigurationError
from jobkit.experiment import Experiment
from jobkit.snapshot import read_snapshot
from tests.conversion_jobs.conftest import Trained
from tests.conversion_jobs.serving import Serving


def test_the_champion_answers_as_the_experiment_does(verified: Trained, served: Serving, model: str) -> None:
    published = verified.publish(model)
    verified.deploy(published.version, model)
    group = Experiment(verified.experiment).group
    arguments = predict.Arguments(model_name=model, group=group, snapshot_id=verified.snapshot_id)
    answer = predict.run(arguments, verified.context)
    sample = read_snapshot(verified.bottle, group, verified.snapshot_id).split("golden")[0]
    assert (answer.picture, answer.truth, answer.version) == (sample.source, sample.label, published.version)
    by_file = predict.Arguments(model_name=model, picture=verified.bottle.local(sample.path))
    assert predict.run(by_file, verified.context).label == answer.label
    assert 0 < answer.probability <= 1


def test_a_model_that_was_never_promoted_is_named(verified: Trained, served: Serving, model: str) -> None:
    verified.publish(model)
    with pytest.raises(ConfigurationError, match="nothing was promoted yet"):
        predict.champion(model)


def test_one_source_of_the_picture_is_asked_for() -> None:
    with pytest.raises(ValueError, match="--picture, or --group and --snapshot_id"):
        predict.Arguments(model_name="digits")
