"""Train a model that answers every picture with how frequent each class is."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from pydantic import Field

from jobkit import job
from jobkit.experiment import Experiment
from jobkit.model_spec import ModelSpec, Preprocessing
from jobkit.snapshot import read_summary


class Arguments(job.Arguments):
    """Write an experiment whose model is a constant."""

    group: str = Field(description="group of pictures")
    snapshot_id: str = Field(description="the snapshot")
    smoothing: float = Field(1.0, ge=0, le=100, description="pictures that each class is counted with beforehand")


class Result(job.Result):
    """The experiment."""

    experiment: str


class Constant(torch.nn.Module):
    """float32 [N, 1, H, W] -> the same logits [N, classes] for each."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([logits]))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.logits + 0 * pictures.mean(dim=(1, 2, 3))[:, None]


def run(arguments: Arguments, context: job.Context) -> Result:
    """Take the counts of the step before."""
    labels = read_summary(context.bottle, arguments.group, arguments.snapshot_id).labels
    lines = context.bottle.read(f"constant/{arguments.group}/{arguments.snapshot_id}.txt").decode().splitlines()
    counts = {label: int(count) for count, label in (line.split(" ", 1) for line in lines)}
    model = Constant([math.log(counts[label] + arguments.smoothing) for label in labels]).eval()
    experiment = Experiment(f"models/{arguments.group}/constant_{arguments.snapshot_id}")
    how = Preprocessing(height=8, width=8, channels=1, mean=(0.5,), std=(0.5,))
    spec = ModelSpec(
        group=arguments.group, architecture="constant", labels=labels, preprocessing=how,
        snapshot_id=arguments.snapshot_id,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "model.pt"
        torch.jit.trace(model, torch.zeros(2, 1, 8, 8)).save(str(script))  # type: ignore[no-untyped-call]
        context.bottle.put(experiment.torchscript, script)
    context.bottle.write(experiment.spec, spec.model_dump_json())
    return Result(experiment=experiment.folder)


if __name__ == "__main__":
    job.main(Arguments, run)
