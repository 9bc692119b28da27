"""A real classifier that trains in a second: logistic regression on the pixels, as an experiment and as an archive."""

from __future__ import annotations

import io
import zipfile

import numpy as np
from sklearn.linear_model import LogisticRegression

from jobkit.bottle import Bottle
from jobkit.model_spec import SPEC_FILE, ModelSpec, Preprocessing, prepare
from jobkit.snapshot import Snapshot

SIDE = 16
HOW = Preprocessing(height=SIDE, width=SIDE, channels=1, mean=(0.5,), std=(0.5,))


class SmallClassifier:
    """Logistic regression on 16x16 gray pixels of a snapshot's training pictures; `labels` leaves classes out."""

    def __init__(
        self, bottle: Bottle, snapshot: Snapshot, labels: list[str] | None = None, iterations: int = 400
    ) -> None:
        samples = [s for s in snapshot.split("train") if labels is None or s.label in labels]
        pixels = np.stack([prepare(bottle.local(s.path), HOW).ravel() for s in samples])
        model = LogisticRegression(max_iter=iterations, tol=0.01).fit(pixels, [s.label for s in samples])
        self.weight, self.bias = model.coef_.astype(np.float32), model.intercept_.astype(np.float32)
        if len(model.classes_) == 2:  # then scikit-learn keeps the second class's scores only
            self.weight, self.bias = (
                np.concatenate([-self.weight, self.weight]),
                np.concatenate([-self.bias, self.bias]),
            )
        self.spec = ModelSpec(
            group=snapshot.summary.group, architecture="logistic_regression", labels=[str(c) for c in model.classes_],
            preprocessing=HOW, snapshot_id=snapshot.summary.snapshot_id,
        )  # fmt: skip

    def write_experiment(self, bottle: Bottle, name: str) -> str:
        """Write what training leaves behind; return the experiment's folder."""
        import torch

        folder = f"models/{self.spec.group}/{name}"
        linear = torch.nn.Linear(SIDE * SIDE, len(self.bias))
        linear.load_state_dict({"weight": torch.from_numpy(self.weight), "bias": torch.from_numpy(self.bias)})
        module = torch.nn.Sequential(torch.nn.Flatten(), linear).eval()
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.trace(module, torch.zeros(1, 1, SIDE, SIDE)), buffer)
        bottle.write(f"{folder}/torchscripts/model.pt", buffer.getvalue())
        bottle.write(f"{folder}/{SPEC_FILE}", self.spec.model_dump_json())
        return folder

    def archive(self) -> bytes:
        """Return the flat zip that the model storage keeps."""
        from onnx import TensorProto, helper, numpy_helper

        count = len(self.bias)
        graph = helper.make_graph(
            [
                helper.make_node("Flatten", ["input"], ["flat"]),
                helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=1),
            ],
            "small",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 1, SIDE, SIDE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", count])],
            [numpy_helper.from_array(self.weight, "w"), numpy_helper.from_array(self.bias, "b")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as files:
            files.writestr("model.onnx", model.SerializeToString())
            files.writestr(SPEC_FILE, self.spec.model_dump_json())
            files.writestr("meta.json", "{}")
        return buffer.getvalue()
