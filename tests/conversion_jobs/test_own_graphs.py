"""A graph of the users' own: checked, opened in the sandbox, served as it is, held to outputs where some are given."""

from __future__ import annotations

import json
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from conversion_jobs.onnx.graph import interface, read_graph
from conversion_jobs.sandboxed.own_graph import list_external_files
from conversion_jobs.triton.served_model import ServedModel
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import Experiment, read_spec
from jobkit.model_spec import ArraySpec, ModelSpec
from tests.conversion_jobs.conftest import Place
from tests.conversion_jobs.serving import Serving

FEATURES, CLASSES = 16, 2
WEIGHTS = np.random.default_rng(3).normal(size=(FEATURES, CLASSES)).astype(np.float32)


def own_graph(
    path: Path, *, batch: int | str = "batch", shape: tuple[int | str, ...] = (FEATURES,), external: str | None = None,
    dtype: int = TensorProto.FLOAT, domain: str = "", opset: int = 13, operator: str = "Flatten",
) -> Path:  # fmt: skip
    """Write a graph `pixels -> scores` that multiplies its flattened input by `WEIGHTS`, with somebody's names."""
    nodes = [
        helper.make_node(operator, ["pixels"], ["flat"], domain=domain),
        helper.make_node("MatMul", ["flat", "matrix"], ["scores"]),
    ]
    inputs = [helper.make_tensor_value_info("pixels", dtype, [batch, *shape])]
    outputs = [helper.make_tensor_value_info("scores", dtype, [batch, CLASSES])]
    matrix = numpy_helper.from_array(WEIGHTS.astype(helper.tensor_dtype_to_np_dtype(dtype)), "matrix")
    graph = helper.make_graph(nodes, "own", inputs, outputs, [matrix])
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    helper.set_model_props(model, {"labels": "whatever its exporter wrote"})
    if external:
        onnx.save(model, path, save_as_external_data=True, location=external, size_threshold=0)
    else:
        onnx.save(model, path)
    return path


def test_an_own_graph_is_served_as_it_is_and_says_that_nothing_was_compared(place: Place, tmp_path: Path) -> None:
    np.save(tmp_path / "arrays.npy", np.random.default_rng(1).normal(size=(9, FEATURES)).astype(np.float32))
    weights = own_graph(tmp_path / "mine.onnx")
    place.bring(weights, family="onnx", labels="boot,shoe", inputs=str(tmp_path / "arrays.npy"), activation="softmax")
    spec = read_spec(place.bottle, Experiment(place.experiment))
    assert isinstance(spec, ArraySpec)
    assert (spec.input_name, spec.outputs[0].name, spec.shape, spec.output) == (
        "pixels", "scores", (FEATURES,), "probabilities",
    )  # fmt: skip
    place.export()
    found = place.verify()
    assert found.verified_against == "served as it is; not compared with anything"
    assert {verdict.name for verdict in found.verdicts} == {
        "finite", "batches_close", "batches_cosine", "batches_top1_agreement",
    }  # fmt: skip
    graph = read_graph(place.graph)
    assert [node.op_type for node in graph.graph.node] == ["Flatten", "MatMul"]
    assert interface(graph).metadata["labels"] == '["boot","shoe"]', "what its exporter wrote is not believed"
    with zipfile.ZipFile(place.bottle.local(place.package("mine").archive)) as archive:
        config, meta = archive.read("config.pbtxt").decode(), json.loads(archive.read("meta.json"))
    assert 'name: "pixels"' in config and 'name: "scores"' in config and "max_batch_size: 8" in config
    assert meta["verified_against"] == found.verified_against


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_an_own_graph_is_held_to_outputs_that_come_with_it(place: Place, tmp_path: Path, factor: float) -> None:
    arrays = np.random.default_rng(1).normal(size=(9, FEATURES)).astype(np.float32)
    np.savez(tmp_path / "expected.npz", inputs=arrays, outputs=factor * arrays @ WEIGHTS)
    place.bring(own_graph(tmp_path / "mine.onnx"), family="onnx", expected=str(tmp_path / "expected.npz"))
    place.export()
    if factor == 1.0:
        assert place.verify().verified_against == "reference outputs that came with the weights"
        return
    with pytest.raises(DataValidationError, match="as expected"):
        place.verify()


def test_an_own_graph_with_weights_beside_it_comes_as_a_zip_with_its_class_names(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    own_graph(folder / "mine.onnx", batch=4, external="mine.data")
    (folder / "num2label.txt").write_text("0: boot\n1: shoe\n")
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"given/{file.name}")
    found = place.bring(tmp_path / "mine.zip", family="onnx")
    assert "its batch is fixed: it takes 4 inputs" in found.notes[0]
    spec = read_spec(place.bottle, Experiment(place.experiment))
    assert (spec.labels, spec.batch) == (["boot", "shoe"], 4)
    assert set(place.verdicts().values()) == {True}


def test_an_own_graph_of_pictures_with_free_sizes_keeps_them(place: Place, tmp_path: Path, pictures: Path) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["scores"]),
    ]
    free = ["n", 3, "h", "w"]
    graph = helper.make_graph(
        nodes, "own", [helper.make_tensor_value_info("images", TensorProto.FLOAT, free)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "mine.onnx")
    place.bring(tmp_path / "mine.onnx", family="onnx", pictures=pictures, img_size=(40, 48), labels="a,b,c")
    spec = read_spec(place.bottle, Experiment(place.experiment))
    assert isinstance(spec, ModelSpec)
    assert (spec.preprocessing.height, spec.preprocessing.width) == (40, 48)
    assert set(place.verdicts().values()) == {True}
    assert interface(read_graph(place.graph)).inputs[0].shape == (None, 3, None, None)


@pytest.mark.parametrize(
    ("how", "options", "error", "says"),
    [
        ({"domain": "my.ops", "operator": "Fancy"}, {}, ConfigurationError, r"operators of my\.ops \(Fancy\)"),
        ({"dtype": TensorProto.FLOAT16}, {}, ConfigurationError, "have to be float32"),
        ({"opset": 8}, {}, ConfigurationError, "has opset 8, 9 is the oldest"),
        ({"opset": 99}, {}, DataValidationError, "has opset 99"),
        ({"shape": ("any",)}, {}, ConfigurationError, "--input_shape says which sizes verify it"),
        ({}, {"input_shape": (17,)}, ConfigurationError, r"takes inputs of \[N, 16\], not of \[N, 17\]"),
        ({}, {"labels": "a,b,c"}, DataValidationError, r"gives \[N, 2\], but 3 classes are named"),
        ({"operator": "NoSuchThing"}, {}, DataValidationError, "NoSuchThing"),
        ({"external": "mine.data"}, {"without": "mine.data"}, DataValidationError, "which is not in its folder"),
    ],
)  # fmt: skip
def test_a_graph_that_cannot_be_served_is_refused_with_its_reason(
    place: Place, tmp_path: Path, how: dict[str, Any], options: dict[str, Any], error: type, says: str
) -> None:
    weights = own_graph(tmp_path / "mine.onnx", **how)
    if name := options.pop("without", None):
        (tmp_path / name).unlink()
    with pytest.raises(error, match=says):
        place.bring(weights, family="onnx", **options)
    assert not list(place.bottle.keys("models"))


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret"])
def test_an_own_graph_that_names_a_file_of_the_host_is_refused(tmp_path: Path, location: str) -> None:
    model = onnx.load(own_graph(tmp_path / "mine.onnx", external="mine.data"), load_external_data=False)
    (entry,) = (entry for entry in model.graph.initializer[0].external_data if entry.key == "location")
    entry.value = location
    (tmp_path / "mine.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DataValidationError, match=f"in '{location}', which is not in its folder"):
        list_external_files(tmp_path, tmp_path / "mine.onnx")


def test_an_own_graph_with_a_fixed_batch_is_deployed_under_its_own_names(
    place: Place, tmp_path: Path, served: Serving, model: str
) -> None:
    place.bring(own_graph(tmp_path / "mine.onnx", batch=3), family="onnx", labels="boot,shoe")
    place.verdicts()
    published = place.publish(model)
    assert place.deploy(published.version, model).version == "0.0.1"
    arrays = np.random.default_rng(4).normal(size=(2, FEATURES)).astype(np.float32)
    with closing(ServedModel(model)) as ready:
        answer, _ = ready.ask_all(arrays)
    np.testing.assert_allclose(answer["scores"], arrays @ WEIGHTS, atol=1e-4)
