"""Heads that are rebuilt from their weights, against the modules that the weights came from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from conversion_jobs.families.heads import HeadActivations, build_head
from jobkit.errors import ConfigurationError, DataValidationError
from nightshift_common.options.weights import HiddenActivation

PATH = Path("head.pth")


@pytest.fixture(autouse=True)
def _file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the weights of these tests are said to come from."""
    monkeypatch.chdir(tmp_path)
    for path in (PATH, PATH.with_suffix(".safetensors")):
        path.write_bytes(b"PK")  # what a file is says its ending, or what it begins with


class Named(nn.Module):
    """A head whose layers have names and whose activation stands in its code alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.bn1, self.fc2 = nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 16)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.bn1(self.fc1(embeddings))))


HEADS: dict[str, tuple[HiddenActivation | None, nn.Module]] = {
    "one layer": (None, nn.Sequential(nn.Linear(16, 4))),
    "a bare layer": (None, nn.Linear(16, 4)),
    "relu": ("relu", nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))),
    "gelu and dropout": ("gelu", nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Dropout(), nn.Linear(8, 4))),
    "tanh's gelu": ("gelu_tanh", nn.Sequential(nn.Linear(16, 8), nn.GELU(approximate="tanh"), nn.Linear(8, 4))),
    "leaky, norm before": (
        "leaky_relu", nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.LeakyReLU(0.2), nn.Linear(8, 4))
    ),
    "norm behind": ("gelu", nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.BatchNorm1d(8), nn.Dropout(),
                                          nn.Linear(8, 4))),
    "norm first, no scale": ("silu", nn.Sequential(nn.BatchNorm1d(16, affine=False), nn.Linear(16, 8), nn.SiLU(),
                                                   nn.Linear(8, 8, bias=False), nn.SiLU(), nn.Linear(8, 4))),
    "layer norm": ("tanh", nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))),
    "nothing between": ("none", nn.Sequential(nn.Linear(16, 8), nn.Dropout(), nn.Linear(8, 4))),
    "named": ("gelu", Named()),
}  # fmt: skip


def random_values(module: nn.Module) -> nn.Module:
    """Give a module weights and statistics that a training could have left; those of a new norm do nothing."""
    generator = torch.Generator().manual_seed(5)
    for name, value in module.state_dict().items():
        if value.dtype.is_floating_point:
            drawn = torch.randn(value.shape, generator=generator)
            value.copy_(drawn.abs() + 0.5 if name.endswith(("running_var", "norm.weight")) else drawn)
    return module.eval()


@pytest.mark.parametrize("alphabetical", [False, True], ids=["as saved", "as safetensors has it"])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_computes_what_the_module_computes_that_its_weights_are_of(name: str, alphabetical: bool) -> None:
    hidden, module = HEADS[name]
    random_values(module)
    state = dict(sorted(module.state_dict().items())) if alphabetical else dict(module.state_dict())
    if alphabetical and name == "named":
        with pytest.raises(DataValidationError, match="does not tell the order of its layers"):
            build_head(state, Path("head.safetensors"), HeadActivations(hidden, 0.2, "none"))
        return
    head, features = build_head(state, PATH, HeadActivations(hidden, 0.2, "none"))
    embeddings = torch.randn(64, features, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(head(embeddings), module(embeddings))


def test_another_activation_flips_classes() -> None:
    """Why it has to be said: a wrong guess looks right for most inputs."""
    module = random_values(nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 4)))
    embeddings = torch.randn(512, 16, generator=torch.Generator().manual_seed(7))
    right = module(embeddings).argmax(1)
    flipped = {}
    for hidden in ("gelu", "relu"):
        head, _ = build_head(module.state_dict(), PATH, HeadActivations(hidden, 0.01, "none"))
        flipped[hidden] = int((head(embeddings).argmax(1) != right).sum())
    assert flipped["gelu"] == 0
    assert 0 < flipped["relu"] < 256


def test_several_layers_without_a_word_on_what_is_between_them_are_refused() -> None:
    module = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(
        ConfigurationError, match=r"2 linear layers \(0, 2\).*--hidden_activation, one of none, relu, gelu"
    ):
        build_head(module.state_dict(), PATH, HeadActivations(None, 0.01, "none"))


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (nn.Sequential(nn.Conv1d(3, 3, 3)), "not a head of linear layers and norms: 0 has weight, bias"),
        (nn.Sequential(nn.BatchNorm1d(3)), "has no linear layer"),
        (nn.Sequential(nn.Linear(16, 8), nn.Linear(9, 4)), "1 takes 9 values, but 0 gives 8"),
        (nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(7)), "1 takes 7 values, but 0 gives 8"),
    ],
)
def test_what_is_no_head_is_refused_by_name(module: nn.Module, says: str) -> None:
    with pytest.raises(DataValidationError, match=says):
        build_head(module.state_dict(), PATH, HeadActivations("relu", 0.01, "none"))


def test_what_stands_behind_the_last_layer_gives_probabilities() -> None:
    module = random_values(nn.Sequential(nn.Linear(16, 4)))
    embeddings = torch.randn(8, 16)
    soft, _ = build_head(module.state_dict(), PATH, HeadActivations(None, 0.01, "softmax"))
    torch.testing.assert_close(soft(embeddings), module(embeddings).softmax(1))
    sigmoid, _ = build_head(module.state_dict(), PATH, HeadActivations(None, 0.01, "sigmoid"))
    torch.testing.assert_close(sigmoid(embeddings), module(embeddings).sigmoid())
