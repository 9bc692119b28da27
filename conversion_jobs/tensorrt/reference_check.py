"""trtexec's own comparison of a plan with reference outputs (`--loadRefOutputs`, from 11.1): a second opinion.

It reads the plan's outputs where they arise, not from a file as `run_plan` does. What is known of it comes from its
source of 11.1: whether it passed is no proof. A reference for an output that the plan does not have gives a warning
and passes, and so does a comparison with NaN. So the line with the loss has to be there, and the number is judged here.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from conversion_jobs.onnx.graph import GraphInterface
from conversion_jobs.tensorrt.trtexec import Array, Trtexec
from conversion_jobs.tensorrt.trtexec_command import has_feature, run_command, run_shapes
from conversion_jobs.verification.checks import Cosine, Verdict

WORST = 2.0  # 1 - cosine of opposite vectors, and what stands for no number
_LOSS = re.compile(r"Accuracy loss for tensor (\S+) \(\w+\): (\S+)")


def reference_verdicts(
    trtexec: Trtexec, plan: Path, graph: GraphInterface, inputs: Array, outputs: Array, limit: Cosine, scratch: Path,
    profile: int | None = None,
) -> list[Verdict]:  # fmt: skip
    """Let trtexec compare a plan's first output for `inputs` [n, ...] with `outputs`; nothing before 11.1.

    The loss is 1 - cosine over all values of the batch: with the same limit less strict than each picture's cosine.
    """
    if not has_feature(trtexec.version, "loadRefOutputs"):
        return []
    name = graph.outputs[0].name
    source, reference = scratch / "input.bin", scratch / "reference.bin"
    np.ascontiguousarray(inputs, "<f4").tofile(source)
    np.ascontiguousarray(outputs, "<f4").tofile(reference)
    allowed = round(1 - limit.minimum, 9)
    command = run_command(
        trtexec.path, trtexec.version, plan, run_shapes(graph, inputs.shape), {graph.inputs[0].name: source},
        outputs=scratch / "outputs.json", times=scratch / "times.json", seconds=0.0, profile=profile,
        version_compatible=trtexec.version_compatible,
    )  # fmt: skip
    command += [f"--loadRefOutputs={name}:{reference}", "--accuracyAlgorithm=cos", f"--accuracyThreshold={allowed:g}"]
    found = dict(_LOSS.findall(trtexec.run(command, loads=True, compares=True)))
    try:
        loss = float(found.get(name, "nan"))
    except ValueError:
        loss = float("nan")
    how = f"its loss (1 - cosine) is {loss:.6f}" if name in found else f"it compared no output {name!r}"
    sentence = f"trtexec's own comparison with the verified outputs: {how}, at most {allowed:g} is allowed"
    passed = loss < allowed  # false for NaN, too
    loss = loss if np.isfinite(loss) else WORST
    return [Verdict(name="reference_outputs", passed=passed, value=loss, limit=allowed, sentence=sentence)]
