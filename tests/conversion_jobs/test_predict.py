"""Asking the served champion about one picture."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conversion_jobs import predict
from jobkit.errors import ConfigurationError, DataValidationError, TransientError
from jobkit.experiment import Experiment
from jobkit.snapshot import read_snapshot
from tests.conversion_jobs.conftest import Trained
from tests.conversion_jobs.serving import Serving


@contextmanager
def serving_folder(folder: Path) -> Iterator[str]:
    """Yield the address of a web server with the files of `folder`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_champion_answers_as_the_experiment_does(verified: Trained, served: Serving, model: str) -> None:
    published = verified.publish(model)
    verified.deploy(published.version, model)
    group = Experiment(verified.experiment).group
    arguments = predict.Arguments(model_name=model, group=group, snapshot_id=verified.snapshot_id)
    answer = predict.run(arguments, verified.context)
    sample = read_snapshot(verified.bottle, group, verified.snapshot_id).split("golden")[0]
    assert (answer.picture, answer.truth, answer.version) == (sample.source, sample.label, published.version)
    assert 0 < answer.probability <= 1
    assert answer.classes[0].label == answer.label
    assert sum(entry.probability for entry in answer.classes) == pytest.approx(1)
    path = verified.bottle.local(sample.path)
    with serving_folder(path.parent) as address:
        for picture in (str(path), f"{address}/{path.name}"):
            arguments = predict.Arguments(model_name=model, picture=picture)
            assert predict.run(arguments, verified.context).classes == answer.classes
    with pytest.MonkeyPatch.context() as patched:  # a Triton that serves no entries
        patched.setattr("conversion_jobs.triton.served_pictures.ENTRY", "_none")
        plain = predict.run(arguments.model_copy(update={"picture": str(path)}), verified.context)
    assert (plain.label, plain.version) == (answer.label, answer.version)
    assert plain.probability == pytest.approx(answer.probability, abs=1e-5)


def test_a_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataValidationError, match=r"none.jpg cannot be read: No such file or directory"):
        predict.picture_to_ask(predict.Arguments(model_name="m", picture=str(tmp_path / "none.jpg")), None)
    with serving_folder(tmp_path) as address, pytest.raises(DataValidationError, match=r"none.jpg answers 404"):
        predict.downloaded(f"{address}/none.jpg")
    with pytest.raises(TransientError, match=f"{address}/none.jpg does not answer"):
        predict.downloaded(f"{address}/none.jpg")


def test_a_model_that_was_never_promoted_is_named(verified: Trained, served: Serving, model: str) -> None:
    verified.publish(model)
    with pytest.raises(ConfigurationError, match="nothing was promoted yet"):
        predict.champion(model)


def test_one_source_of_the_picture_is_asked_for() -> None:
    with pytest.raises(ValueError, match="--picture, or --group and --snapshot_id"):
        predict.Arguments(model_name="digits")
