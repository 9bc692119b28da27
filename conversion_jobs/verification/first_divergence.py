"""Where two models part: which module of the source has no counterpart in the graph any more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conversion_jobs.onnx.session import Intermediates

if TYPE_CHECKING:
    from torch import nn

Picture = NDArray[np.float32]


def first_difference(source: nn.Module, graph: Any, folder: Path, picture: Picture, atol: float, rtol: float) -> str:
    """Return a sentence that names the first module of `source` that `graph` does not compute for `picture` [C, H, W].

    Weights outside of the graph are in `folder`. Modules are matched with tensors of the graph by value, since an
    exporter renames. It also fuses a convolution or a linear layer with the normalization that follows: such a layer
    counts as found where the next module is.
    """
    by_shape: dict[tuple[int, ...], list[Picture]] = {}
    for value in Intermediates(graph, folder).tensors(picture[None]).values():
        by_shape.setdefault(value.shape, []).append(value)
    modules = dict(source.named_modules())
    outputs = [(name, value) for name, value in module_outputs(source, picture) if np.ptp(value) > atol]
    found = [
        any(np.allclose(other, value, rtol=rtol, atol=atol) for other in by_shape.get(value.shape, []))
        for _, value in outputs
    ]
    for index, (name, _) in enumerate(outputs[:-1]):
        fused = type(modules[name]).__name__.startswith(("Conv", "Linear")) and found[index + 1]
        if not found[index] and not fused:
            before = f"they agree up to the module {outputs[index - 1][0]} and " if index else "they "
            return f"{before}differ from {name} on"
    return "every module but the last is the same in both: the difference is in or after the last"


def module_outputs(model: nn.Module, picture: Picture) -> list[tuple[str, Picture]]:
    """Return the output of every module without children, in the order of execution, for one picture [C, H, W]."""
    import torch

    found: list[tuple[str, Picture]] = []

    def remember(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.is_floating_point():
                found.append((name, output.detach().float().numpy().copy()))

        return hook

    handles = [
        module.register_forward_hook(remember(name))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    try:
        with torch.inference_mode():
            model(torch.from_numpy(picture[None]))
    finally:
        for handle in handles:
            handle.remove()
    return found
