"""A published version as MLflow loads it: pictures in, the answers of Triton's entry out, none of our packages near."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tritonclient.http
from mlflow import MlflowClient
from numpy.typing import NDArray

from conversion_jobs import publish_model
from conversion_jobs.publishing.loaded_classifier import Classifier
from conversion_jobs.publishing.mlflow_model import PublishedModel, model_files
from jobkit.answers import read_answers
from jobkit.experiment import Experiment
from jobkit.files import sha256_of
from jobkit.job import Context
from jobkit.model_spec import Preprocessing, prepare
from nightshift_common.task_instance import TaskInstanceKey
from tests.conversion_jobs.conftest import Trained
from tests.conversion_jobs.serving import TOKEN, Serving, serving
from tests.conversion_jobs.test_deploy_pictures import evaluated
from tests.conversion_jobs.test_publish_model import another_model
from tests.support.servers import SERVICES
from tests.support.signing_keys import Key
from tests.support.tiny_onnx import pixels_model, scaling_model
from tests.support.waiting import wait_for

PACKAGES = ("cv2", "opencv_python_headless*", "onnx", "onnx-*", "onnxruntime*", "flatbuffers*", "ml_dtypes*")
"""What the environment of MLflow lacks, and a model's requirements list."""
LOAD = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "jobkit", "training_jobs", "conversion_jobs", "nightshift_common"}:
            raise ImportError(f"{name} is not where a model is loaded")

sys.meta_path.insert(0, Blocked())
import base64, json, pathlib
import mlflow, numpy as np, pandas

model, folder, other = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
names = sorted(path.name for path in folder.iterdir())
files = [(folder / name).read_bytes() for name in names]
loaded = mlflow.pyfunc.load_model(f"models:/{model}@champion")
beside = mlflow.pyfunc.load_model(f"models:/{model}/{other}")
answers = loaded.predict(files)
same = [
    loaded.predict(files[0])[0],
    loaded.predict(pandas.DataFrame({"picture": files}))[0],
    loaded.predict(np.array(files, object))[0],
    loaded.predict([base64.b64encode(files[0]).decode()])[0],
]
assert all(answer == answers[0] for answer in same), same
graph = mlflow.onnx.load_model(f"models:/{model}@champion").graph
about = loaded.metadata
print(json.dumps({
    "answers": dict(zip(names, answers)),
    "beside": beside.predict(files[0])[0],
    "example": loaded.predict(loaded.input_example),
    "graph": [graph.input[0].name, graph.output[0].name],
    "signature": [about.signature.inputs.input_names(), about.signature.outputs.input_names()],
}))
"""


@pytest.fixture(scope="module")
def place_of_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that makes the environment of MLflow one that can load models, as links to this one's."""
    folder = tmp_path_factory.mktemp("packages")
    site = Path(cv2.__file__).parents[1]
    for pattern in PACKAGES:
        for path in site.glob(pattern):
            if not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def followed_process(
    postgres_url: str, mlflow_server: str, signing_key: Key, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    settings = {
        "MODEL_STORAGE_MLFLOW_URL": mlflow_server, "MODEL_STORAGE_SIGNATURES": "require",
        "MODEL_STORAGE_PUBLIC_KEYS": signing_key.one_line,
    }  # fmt: skip
    with serving(tmp_path_factory.mktemp("followed"), postgres_url, **settings) as running:
        yield running


@pytest.fixture
def followed(followed_process: Serving, signing_key: Key, monkeypatch: pytest.MonkeyPatch) -> Serving:
    """Triton and a model storage that MLflow's aliases follow, named by the environment."""
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_URL", followed_process.url)
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_TOKEN", TOKEN)
    monkeypatch.setenv("NIGHTSHIFT_TRITON_URL", followed_process.triton.http)
    monkeypatch.setenv("NIGHTSHIFT_SIGNING_KEY", signing_key.private.read_text())
    return followed_process


def where_mlflow_is(packages: Path, code: str, folder: Path, *arguments: object) -> Any:
    """Run code in the environment of MLflow, outside the checkout; return the JSON of its last line."""
    command = [str(SERVICES / "python"), "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(packages), "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def of_triton(served: Serving, model: str, content: bytes) -> dict[str, Any]:
    """Return the answer of the entry for pictures as a loaded model gives it."""
    tensor = tritonclient.http.InferInput("picture", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[content]], np.object_))
    with tritonclient.http.InferenceServerClient(served.triton.http, network_timeout=60.0) as client:
        answer = client.infer(f"{model}_jpeg", [tensor])
    return {
        "labels": [name.decode() for name in answer.as_numpy("labels")[0]],
        "label_probabilities": answer.as_numpy("label_probabilities")[0],
        "probabilities": answer.as_numpy("probabilities")[0],
        "version": answer.as_numpy("version")[0, 0].decode(),
    }


def assert_equal_answers(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert (found["labels"], found["version"]) == (expected["labels"], expected["version"])
    for name in ("label_probabilities", "probabilities"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6)


def aliases(client: MlflowClient, model: str) -> dict[str, str]:
    return {alias: str(number) for alias, number in client.get_registered_model(model).aliases.items()}


def test_the_champion_that_mlflow_loads_answers_as_triton_does_and_follows_a_rollback(
    verified: Trained,
    followed: Serving,
    model: str,
    mlflow_url: str,
    place_of_mlflow: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = read_answers(verified.bottle, evaluated(verified, monkeypatch))
    files = tmp_path / "files"
    files.mkdir()
    for number, key in enumerate(answers.pictures):
        content = verified.bottle.read(key)
        (files / f"{number:02}.png").write_bytes(content)
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        (files / f"{number:02}.jpg").write_bytes(cv2.imencode(".jpg", decoded)[1].tobytes())
    client = MlflowClient(mlflow_url)
    verified.context = Context(tmp_path / "job", TaskInstanceKey(f"retrain_{model}", "manual__1", "publish_model"))
    verified.context.bottle = verified.bottle
    verified.deploy(verified.publish(model).version, model)
    wait_for(lambda: aliases(client, model).get("champion") == "1", "the first champion's alias")

    first = where_mlflow_is(place_of_mlflow, LOAD, tmp_path, model, files, "1")
    for name, found in first["answers"].items():
        assert_equal_answers(found, of_triton(followed, model, (files / name).read_bytes()))
    # Evaluation asked torch itself: another library, and no code of serving.
    by_evaluation = [first["answers"][f"{number:02}.png"]["probabilities"] for number in range(len(answers.pictures))]
    assert np.abs(np.array(by_evaluation) - answers.probabilities).max() < 1e-4
    assert first["graph"] == ["input", "logits"]
    assert first["signature"] == [["picture"], ["labels", "label_probabilities", "probabilities", "version"]]
    with np.load(verified.bottle.local(Experiment(verified.experiment).reference)) as reference:
        expected = reference["outputs"][0]
    example = np.log(first["example"][0]["probabilities"])
    assert example - example.mean() == pytest.approx(expected - expected.mean(), abs=1e-3)  # logits but for a constant

    another_model(verified, 4)
    verified.deploy(verified.publish(model).version, model)
    wait_for(lambda: aliases(client, model).get("champion") == "2", "the second champion's alias")
    followed_back = tmp_path / "some"
    followed_back.mkdir()
    (followed_back / "00.png").write_bytes((files / "00.png").read_bytes())
    promoted = of_triton(followed, model, (files / "00.png").read_bytes())
    assert promoted["version"] == "0.0.2"
    with publish_model.ModelStorage() as storage:
        storage.roll_back(model, {})
    wait_for(lambda: aliases(client, model).get("champion") == "1", "the alias after the rollback")
    second = where_mlflow_is(place_of_mlflow, LOAD, tmp_path, model, followed_back, "2")
    assert_equal_answers(second["answers"]["00.png"], of_triton(followed, model, (files / "00.png").read_bytes()))
    assert second["answers"]["00.png"]["version"] == "0.0.1"
    assert_equal_answers(second["beside"], promoted)


def test_a_retry_sends_the_graph_once_and_completes_what_was_torn(
    verified: Trained, served: Serving, model: str, mlflow_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified.context = Context(tmp_path / "job", TaskInstanceKey(f"retrain_{model}", "manual__1", "publish_model"))
    verified.context.bottle = verified.bottle
    sent: list[str] = []
    log_artifact = MlflowClient.log_artifact

    def recorded(client: MlflowClient, run_id: str, path: str, folder: str | None = None) -> None:
        sent.append(Path(path).name)
        log_artifact(client, run_id, path, folder)

    monkeypatch.setattr(MlflowClient, "log_artifact", recorded)
    for _attempt in (1, 2):
        verified.publish(model)
    assert sent.count("model.onnx") == 1
    client = MlflowClient(mlflow_url)
    (version,) = client.search_model_versions(f"name='{model}'")
    torn = tmp_path / "model.onnx"
    torn.write_bytes(b"half of it")
    log_artifact(client, version.run_id, str(torn), "versions/0.0.1")
    verified.publish(model)
    loaded = Path(client.download_artifacts(version.run_id, "versions/0.0.1/model.onnx", str(tmp_path / "..")))
    assert loaded.read_bytes() == verified.bottle.read(Experiment(verified.experiment).onnx)
    (again,) = client.search_model_versions(f"name='{model}'")
    assert again.version == version.version


def test_requirements_name_what_answered_and_nothing_that_needs_torch(
    verified: Trained, served: Serving, model: str, mlflow_url: str, tmp_path: Path
) -> None:
    verified.context = Context(tmp_path / "job", TaskInstanceKey(f"retrain_{model}", "manual__1", "publish_model"))
    verified.context.bottle = verified.bottle
    verified.publish(model)
    client = MlflowClient(mlflow_url)
    (version,) = client.search_model_versions(f"name='{model}'")
    folder = Path(client.download_artifacts(version.run_id, "versions/0.0.1", str(tmp_path)))
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert f"opencv-python-headless=={metadata.version('opencv-python-headless')}" in lines
    assert {line.partition("==")[0] for line in lines} == {
        "mlflow", "numpy", "onnx", "onnxruntime", "opencv-python-headless",
    }  # fmt: skip
    assert not list(folder.rglob("*.pkl"))


def loaded_here(folder: Path, how: Preprocessing, *, multi_label: bool = False) -> Classifier:
    """Return a classifier of whose probabilities each is a pixel's value."""
    size = how.channels * how.height * how.width
    served = {
        "version": "0.0.7", "labels": [str(index) for index in range(size)], "output": "probabilities",
        "multi_label": multi_label, "preprocessing": how.model_dump(mode="json"),
    }  # fmt: skip
    (folder / "served.json").write_text(json.dumps(served))
    (folder / "model.onnx").write_bytes(pixels_model(how.channels, how.height, how.width))
    return Classifier(folder)


COLOR = Preprocessing(height=12, width=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
GRAY = Preprocessing(height=12, width=16, channels=1, mean=(0.0,), std=(1.0,))


def drawn(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 255, shape, np.uint8)


def encoded(form: str) -> bytes:
    return cv2.imencode(form, drawn(90, 90, 3))[1].tobytes()


@pytest.mark.parametrize("how", [COLOR, GRAY], ids=["color", "gray"])
def test_files_decoded_pictures_and_prepared_inputs_give_one_answer(tmp_path: Path, how: Preprocessing) -> None:
    loaded = loaded_here(tmp_path, how)
    pictures = drawn(3, 30, 41, 3) if how.channels == 3 else drawn(3, 30, 41)
    files = [cv2.imencode(".png", picture[..., ::-1] if how.channels == 3 else picture)[1] for picture in pictures]
    contents = [content.tobytes() for content in files]
    (tmp_path / "0.png").write_bytes(contents[0])
    expected = prepare(tmp_path / "0.png", how).ravel()
    found = loaded.predict(contents)
    assert found[0]["probabilities"] == pytest.approx(expected, abs=0)
    assert found[0]["labels"] == [str(index) for index in np.argsort(-expected, kind="stable")[:5]]
    assert [len(answer["labels"]) for answer in found] == [5, 5, 5]
    inputs = np.stack([np.array(answer["probabilities"], np.float32) for answer in found])
    for same in (pictures, list(pictures), inputs.reshape(3, how.channels, how.height, how.width)):
        assert loaded.predict(same) == found
    for one in (contents[0], pictures[0], bytearray(contents[0]), base64.b64encode(contents[0]).decode()):
        assert loaded.predict(one) == found[:1]


def test_of_several_labels_none_that_a_picture_shows_is_cut_off(tmp_path: Path) -> None:
    picture = np.zeros((12, 16), np.uint8)
    picture[0, :9] = 200
    (answer,) = loaded_here(tmp_path, GRAY, multi_label=True).predict(picture)
    assert answer["labels"] == [str(index) for index in range(9)]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([encoded(".png"), encoded(".jpg")[:-40]], "picture 2 of 2: it is torn"),
        (b"", "it is empty"),
        (b"no picture", "no picture that can be decoded"),
        ("no Base64", "no picture that can be decoded"),
        (drawn(9, 9, 4), r"uint8 \[9, 9, 4\]; a decoded picture is uint8 \[h, w, 3\] in RGB"),
        (drawn(9, 9), r"it is uint8 \[9\]"),
        (np.zeros((9, 9, 3)), r"it is float64 \[9, 9, 3\]"),
        (np.zeros((2, 3, 12, 17), np.float32), r"float32 \[n, 3, 12, 16\], not \[2, 3, 12, 17\]"),
        ({"a": [b""], "b": [b""]}, "one column"),
        ([7], "it is int, neither an encoded file"),
    ],
)
def test_what_cannot_be_used_is_told(tmp_path: Path, data: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        loaded_here(tmp_path, COLOR).predict(data)


def test_a_graph_of_one_batch_size_answers_any_number_of_pictures(tmp_path: Path) -> None:
    import onnx

    loaded = loaded_here(tmp_path, GRAY)
    pictures = drawn(5, 12, 16)
    expected = loaded.predict(pictures)
    graph = onnx.load(tmp_path / "model.onnx")
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(graph, tmp_path / "model.onnx")
    assert Classifier(tmp_path).predict(pictures) == expected
    assert Classifier(tmp_path).predict([]) == []


def of_arrays(width: int, target: str = "onnx") -> PublishedModel:
    """Return what a package says of `scaling_model`, which has no classes."""
    sides = {
        side: [{"name": side.removesuffix("s"), "dtype": "float32", "shape": [-1, width]}]
        for side in ("inputs", "outputs")
    }
    return PublishedModel("m", "0.0.3", target, {**sides, "onnx_sha256": "0" * 64}, None, None)


def test_a_model_without_classes_takes_and_gives_arrays(place_of_mlflow: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(scaling_model(3.0))
    for name, text in model_files(of_arrays(4), "versions/0.0.3", "run", has_graph=True).items():
        (folder / name).write_text(text)
    code = """
import json, sys
import mlflow, numpy as np
loaded = mlflow.pyfunc.load_model(sys.argv[1])
asked = loaded.predict({"input": np.arange(4, dtype=np.float32)[None]})["output"].tolist()
print(json.dumps([asked, loaded.predict(loaded.input_example)["output"].tolist(), loaded.metadata.signature.to_dict(),
                  mlflow.onnx.load_model(sys.argv[1]).graph.name]))
"""
    asked, example, signature, graph = where_mlflow_is(place_of_mlflow, code, tmp_path, folder)
    assert (asked, example, graph) == ([[0, 3, 6, 9]], [[0, 0, 0, 0]], "scaling")
    assert json.loads(signature["inputs"])[0]["tensor-spec"] == {"dtype": "float32", "shape": [-1, 4]}
    assert "opencv" not in (folder / "requirements.txt").read_text()


def test_an_example_that_would_be_megabytes_is_left_out() -> None:
    files = model_files(of_arrays(200_000), "versions/0.0.3", "run", has_graph=True)
    assert "input_example.json" not in files and "saved_input_example_info" not in files["MLmodel"]


def test_of_a_plan_mlflow_loads_the_graph_that_it_was_built_from_or_nothing(
    verified: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = Experiment(verified.experiment)
    graph = verified.bottle.local(experiment.onnx)
    plan = of_arrays(4, "tensorrt")
    built = replace(plan, meta={**plan.meta, "onnx_sha256": sha256_of(graph)})
    found = publish_model.loadable_graph(verified.context, built, experiment, "none.zip", tmp_path)
    assert found is not None and found.read_bytes() == graph.read_bytes()
    assert publish_model.loadable_graph(verified.context, plan, experiment, "none.zip", tmp_path) is None
    assert "MLflow cannot load this version" in caplog.text
    files = model_files(plan, "versions/0.0.3", "run", has_graph=False)
    assert set(files) == {"MLmodel"} and "flavors: {}" in files["MLmodel"] and "tensor-spec" in files["MLmodel"]
