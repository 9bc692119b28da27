"""Export of models with large weights: traced without them; they go one by one from the checkpoint into the file.

torch's exporter on TorchScript copies all weights three times (for its graph, for the message, for the bytes of the
file): 1.8 GB for a ViT-B of 343 MB. Its graph alone takes none of that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conversion_jobs.onnx.mapped_file import KEPT, append_weight
from jobkit.errors import DataValidationError

if TYPE_CHECKING:
    from torch import Tensor, nn

LARGE = 64 * 2**20  # bytes of weights; below that the usual export has no peak that matters


def is_streamed(model: nn.Module) -> bool:
    """Whether `model` is exported without its weights.

    Not with batch norms: the exporter folds them into the convolutions before them, by their values.
    """
    import torch

    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return False
    has_batch_norm = any(isinstance(module, torch.nn.modules.batchnorm._NormBase) for module in model.modules())
    return not has_batch_norm and sum(tensor.nbytes for tensor in _tensors(model).values()) >= LARGE


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers that a checkpoint has: the tracer takes these for inputs.

    A buffer that no checkpoint has (a Swin's attention mask) is a constant for it, so its numbers have to be there.
    """
    import torch

    state = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


@contextmanager
def without_weights(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Put tensors of the same shapes, which take no memory, in the place of the weights; yield these by name.

    Each is one number, repeated; another one for each, since the exporter merges weights that are equal.
    """
    import torch

    holders = _tensors(model)
    weights = {name: tensor.data for name, tensor in holders.items()}  # `data`: a view that keeps what is replaced
    large = [name for name, value in weights.items() if value.is_floating_point() and value.nbytes >= KEPT]
    try:
        for number, name in enumerate(large, start=1):
            value = weights[name]
            holders[name].data = torch.full((1,) * value.ndim, number * 1e-4, dtype=value.dtype).expand(value.shape)
        yield weights
    finally:
        for name in large:
            holders[name].data = weights[name]


def add_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Put `weights` into the graph at `path`, which has them as inputs.

    A matrix that the graph transposes before it uses it is stored transposed, as the usual export does.

    Raises:
        DataValidationError: the graph has weights that the model does not have.
    """
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    used = Counter(name for node in graph.node for name in node.input)
    turned = {
        node.input[0]: node
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] in weights and used[node.input[0]] == 1
    }
    named = [value.name for value in graph.input if value.name in weights]
    unknown = [value.name for value in graph.input if value.name not in weights]
    if len(unknown) != 1:
        raise DataValidationError(f"the exported graph has the inputs {', '.join(unknown)}; one is known")
    for value in [value for value in graph.input if value.name in weights]:
        graph.input.remove(value)
    for node in turned.values():
        graph.node.remove(node)
    onnx.save(model, str(path))
    with path.open("ab") as file:
        for name in named:
            array = weights[name].detach().numpy()
            node = turned.get(name)
            stored = array if node is None else array.transpose(_order(node, array))
            append_weight(file, name if node is None else node.output[0], stored)


def _order(node: Any, array: np.ndarray[Any, Any]) -> list[int]:
    given = [list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"]
    return given[0] if given else list(reversed(range(array.ndim)))
