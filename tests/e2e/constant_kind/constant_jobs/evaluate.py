"""Score a constant: which share of the golden pictures it is right about."""

from __future__ import annotations

from collections import Counter

import torch
from pydantic import Field

from jobkit import job
from jobkit.experiment import Experiment, read_spec
from jobkit.snapshot import read_snapshot
from training_jobs.scoring.evaluation import Evaluation, Scores, Slice


class Arguments(job.Arguments):
    """Score the constant; there is no other to compare with."""

    experiment: str = Field(description="the candidate")
    snapshot_id: str = Field(description="the snapshot")
    model_name: str = Field(description="name in the model storage")


class Result(job.Result):
    """Where the evaluation is."""

    report: str


def run(arguments: Arguments, context: job.Context) -> Result:
    """Ask the model once."""
    experiment = Experiment(arguments.experiment)
    spec = read_spec(context.bottle, experiment)
    golden = read_snapshot(context.bottle, experiment.group, arguments.snapshot_id).split("golden")
    model = torch.jit.load(context.bottle.local(experiment.torchscript))  # type: ignore[no-untyped-call]
    answer = spec.labels[int(model(torch.zeros(1, 1, 8, 8)).argmax())]
    counts = Counter(sample.label for sample in golden)
    scores = Scores(
        version=experiment.folder,
        metrics={"majority_share": counts[answer] / len(golden)},
        slices={f"class/{label}": Slice(support=n, score=float(label == answer)) for label, n in counts.items()},
        slice_metric="recall",
    )
    evaluation = Evaluation(
        kind="constant", group=experiment.group, snapshot_id=arguments.snapshot_id, experiment=experiment.folder,
        model_name=arguments.model_name, labels=spec.labels, pictures=len(golden), gate_metrics=["majority_share"],
        candidate=scores, champion=None, comparison=None,
    )  # fmt: skip
    key = f"evaluations/{experiment.group}/{arguments.snapshot_id}/constant.json"
    context.bottle.write(key, evaluation.model_dump_json())
    return Result(report=key)


if __name__ == "__main__":
    job.main(Arguments, run)
