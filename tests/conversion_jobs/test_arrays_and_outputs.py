"""Models of other inputs than pictures, with several outputs or a fixed batch: imported, verified, configured."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from conversion_jobs import test_onnx, torch2onnx
from conversion_jobs.onnx.graph import interface, read_graph
from conversion_jobs.torch2onnx import legacy_command_line
from conversion_jobs.triton.model_config import model_config
from conversion_jobs.triton.served_model import Reference, ServedModel
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import Experiment, read_spec
from jobkit.job import Context, parse
from jobkit.model_spec import ArraySpec
from tests.conversion_jobs.conftest import Place
from tests.conversion_jobs.serving import Serving
from tests.support.volumes import SHAPE, VolumeEncoder


@pytest.fixture
def encoder(tmp_path: Path) -> tuple[Path, nn.Module]:
    torch.manual_seed(3)
    module = VolumeEncoder().eval()
    torch.save(module.state_dict(), tmp_path / "encoder.pth")
    return tmp_path / "encoder.pth", module


FACTORY = {"family": "factory", "factory": "tests.support.volumes:volume_encoder", "input_shape": SHAPE}


def test_a_model_of_volumes_with_two_outputs_is_verified_and_configured(
    place: Place, encoder: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    weights, module = encoder
    volumes = torch.randn(5, *SHAPE)
    np.save(tmp_path / "volumes.npy", volumes.numpy())
    place.bring(weights, **FACTORY, inputs=str(tmp_path / "volumes.npy"), output_names="embedding,logits")
    spec = read_spec(place.bottle, Experiment(place.experiment))
    assert isinstance(spec, ArraySpec)
    assert [(tensor.name, tensor.shape) for tensor in spec.outputs] == [("embedding", (12,)), ("logits", (3,))]
    assert set(place.verdicts()) == {
        "finite", "close", "cosine", "logits_finite", "logits_close", "logits_cosine",
    }  # fmt: skip
    found = interface(read_graph(place.graph))
    config = model_config(found, "volumes", has_labels=False)
    assert [list(entry.dims) for entry in (*config.input, *config.output)] == [[1, 8, 16, 16], [12], [3]]
    answered = onnxruntime.InferenceSession(str(place.graph)).run(None, {"input": volumes.numpy()})
    for given, wanted in zip(answered, module(volumes).values(), strict=True):
        np.testing.assert_allclose(given, wanted.detach().numpy(), atol=1e-4)
    reference = Reference(place.bottle.local(Experiment(place.experiment).reference))
    assert list(reference.further) == ["logits"] and reference.further["logits"].shape == (5, 3)
    assert place.package("volumes").archive.endswith("model_onnx.zip")


def test_without_real_inputs_random_ones_verify_and_the_verdict_says_so(
    place: Place, encoder: tuple[Path, nn.Module]
) -> None:
    place.bring(encoder[0], **FACTORY)
    place.export()
    assert place.verify().verified_against == (
        "consistent with our reading of the weights, on random numbers, since no real inputs were given"
    )


def test_each_output_is_held_to_what_the_users_own_code_gives(
    place: Place, encoder: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    weights, module = encoder
    volumes = torch.randn(4, *SHAPE)
    first, second = (value.detach().numpy() for value in module(volumes).values())
    arrays = {"inputs": volumes.numpy(), "outputs": first, "output_1": second}
    for name, changed, says in (
        ("right", {}, None),
        ("other", {"output_1": second[:, ::-1]}, "output_1: as expected"),
        ("strange", {"scores": second}, "not scores"),
    ):
        np.savez(tmp_path / f"{name}.npz", **arrays | changed)
        if name == "strange":
            with pytest.raises(DataValidationError, match=says):
                place.bring(weights, **FACTORY, expected=str(tmp_path / f"{name}.npz"))
            continue
        place.bring(weights, **FACTORY, expected=str(tmp_path / f"{name}.npz"))
        place.export()
        if says is None:
            assert place.verify().verified_against == "reference outputs that came with the weights"
        else:
            with pytest.raises(DataValidationError, match=says):
                place.verify()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"output_names": "embedding"}, ConfigurationError, "gives 2 outputs, --output_names has 1"),
        ({"input_shape": (2, 8, 16, 16)}, ConfigurationError, r"does not take float32 inputs of \[N, 2, 8, 16, 16\]"),
        ({"labels": "a,b"}, DataValidationError, r"gives \[N, 12\], but 2 classes are named"),
        (
            {"inputs": "{folder}/flat.npy"},
            DataValidationError,
            r"holds float32 \[3, 4\], the model takes float32 \[n, 1",
        ),
        ({"inputs": "{folder}/encoder.pth"}, DataValidationError, r"is no \.npy file of numbers"),
    ],
)
def test_arrays_and_outputs_that_the_model_does_not_have_are_refused(
    place: Place, encoder: tuple[Path, nn.Module], tmp_path: Path, options: dict[str, Any], error: type, says: str
) -> None:
    np.save(tmp_path / "flat.npy", np.zeros((3, 4), np.float32))
    options = {k: v.format(folder=tmp_path) if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(error, match=says):
        place.bring(encoder[0], **FACTORY | options)
    assert not list(place.bottle.keys("models"))


def small_head() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


def traced(module: nn.Module, path: Path, example: Tensor) -> Path:
    torch.jit.trace(module, example, check_trace=False).save(str(path))
    return path


class FixedBatch(nn.Module):
    """What a trace writes down where code asks for the batch: three inputs, no more and no fewer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 2)

    def forward(self, arrays: Tensor) -> Tensor:
        return self.head(arrays.reshape(3, 12))


def test_half_precision_torchscript_becomes_float32_and_says_so(place: Place, tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = small_head().half()
    weights = traced(module, tmp_path / "half.pt", torch.zeros(2, 3, 4, dtype=torch.float16))
    found = place.bring(weights, family="torchscript", input_shape=(3, 4))
    assert found.notes == ["weights of float16 became float32 for the graph"]
    assert all(place.verdicts().values())
    assert interface(read_graph(place.graph)).inputs[0].dtype == "float32"


class Halving(nn.Module):
    """Half precision written into the code, which no change of the weights takes out."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 2)

    def forward(self, arrays: Tensor) -> Tensor:
        return self.head(arrays.flatten(1).half())


def test_half_precision_that_stands_in_the_code_is_refused_with_what_to_do(place: Place, tmp_path: Path) -> None:
    weights = traced(Halving().half(), tmp_path / "half.pt", torch.zeros(2, 3, 4))
    with pytest.raises(
        ConfigurationError, match=r"types that are written into its code stay: save it again from model"
    ):
        place.bring(weights, family="torchscript", input_shape=(3, 4))


def test_a_fixed_batch_is_found_said_verified_and_served_as_it_is(place: Place, tmp_path: Path) -> None:
    torch.manual_seed(2)
    module = FixedBatch().eval()
    weights = traced(module, tmp_path / "fixed.pt", torch.zeros(3, 3, 4))
    found = place.bring(weights, family="torchscript", input_shape=(3, 4), labels="boot,shoe")
    assert "its batch is fixed: it takes 3 inputs at once" in found.notes[0]
    assert all(place.verdicts().values())
    graph = interface(read_graph(place.graph))
    config = model_config(graph, "fixed", has_labels=False)
    assert (config.max_batch_size, list(config.input[0].dims), config.HasField("dynamic_batching")) == (
        0,
        [3, 3, 4],
        False,
    )
    inputs = torch.randn(3, 3, 4)
    answered = onnxruntime.InferenceSession(str(place.graph)).run(None, {"input": inputs.numpy()})[0]
    np.testing.assert_allclose(answered, module(inputs).detach().numpy(), atol=1e-5)


def test_from_file_to_file_a_model_of_volumes_is_exported_and_every_output_compared(
    encoder: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    weights, graph = encoder[0], tmp_path / "encoder.onnx"
    np.save(tmp_path / "volumes.npy", np.random.default_rng(2).normal(size=(3, *SHAPE)).astype(np.float32))
    line = ["--input-shape", "1", "8", "16", "16", "--factory", "tests.support.volumes:volume_encoder"]
    arguments = parse(
        torch2onnx.Arguments,
        legacy_command_line(["--family", "factory", *line, "--weights", str(weights), "--output", str(graph)]),
    )
    assert arguments.input_shape == SHAPE
    context = Context(tmp_path, None)
    torch2onnx.run(arguments, context)
    options = test_onnx.Arguments(onnx=graph, weights=weights, inputs=tmp_path / "volumes.npy")
    names = {verdict.name for verdict in test_onnx.run(options, context).verdicts}
    assert names >= {"close", "output_1_close", "output_1_cosine"}


def test_both_outputs_are_served_by_triton_and_each_is_checked(
    place: Place, encoder: tuple[Path, nn.Module], served: Serving, model: str
) -> None:
    place.bring(encoder[0], **FACTORY, output_names="embedding,scores")
    assert all(place.verdicts().values())
    published = place.publish(model)
    place.deploy(published.version, model)
    reference = Reference(place.bottle.local(Experiment(place.experiment).reference))
    with closing(ServedModel(model)) as ready:
        answer, _ = ready.ask_all(reference.inputs[:2])
        np.testing.assert_allclose(answer["scores"], reference.further["scores"][:2], atol=1e-4)
        reference.further["scores"] = reference.further["scores"][:, ::-1]
        with pytest.raises(DataValidationError, match="scores: the largest difference"):
            ready.check(reference, "onnx", 1)
