"""How closely timm's architectures answer in Triton, through all jobs from a checkpoint on: with 3 channels and 1.

    .venv/jobs/bin/python -m benchmarks.architectures [--architectures resnet18,convnext_atto] [--folder FOLDER]

What is done stays in FOLDER: called again, it goes on, and tries again what was refused. The pictures are those of
`NIGHTSHIFT_TEST_DATA`.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor, nn

from conversion_jobs import export_onnx, import_weights, package_model, verify_onnx
from conversion_jobs.onnx.graph import interface
from conversion_jobs.onnx.mapped_file import split_file
from conversion_jobs.triton.served_model import Reference, ServedModel
from jobkit.bottle import FolderBottle
from jobkit.classifier import Classifier
from jobkit.errors import JobError
from jobkit.experiment import Experiment
from jobkit.job import Context
from jobkit.model_spec import Preprocessing, prepare
from local.triton import TritonServer
from tests.support.sample_data import HYMENOPTERA, MISSING
from tests.support.servers import free_ports

SIDES = {
    "resnet18": 64, "regnety_002": 64, "densenet121": 64, "repvgg_a0": 64, "hgnetv2_b0": 64, "efficientnet_b0": 64,
    "mobilenetv3_small_050": 64, "ghostnet_050": 64, "convnext_atto": 64, "inception_next_atto": 64,
    "edgenext_xx_small": 64, "mobilevitv2_050": 64, "fastvit_t8": 64, "poolformerv2_s12": 64, "pvt_v2_b0": 64,
    "vit_tiny_patch16_224": 224, "swin_tiny_patch4_window7_224": 224, "xcit_nano_12_p16_224": 224,
    "levit_128s": 224, "mixer_s32_224": 224,
}  # fmt: skip
"""Architectures, each of another family of timm's, and the pictures' side: those of 224 take no other."""
SCALES = {"levit_128s": (0.1, 0.5)}
"""What scales are drawn from that start at 0, if not 0.5 to 1.5."""
ATTENTION = 0.5
"""Gain of queries and keys that a batch norm gives (LeViT). With 1, and scales near 1, the attention saturates on a few
photographs: torch's own float32 is then 5e-2 off float64, and no two programs agree within 1e-4."""
LABELS = [f"class_{number}" for number in range(10)]
PICTURES, CALIBRATION = 8, 32
LIMIT = 1e-4
SERVED_AT_ONCE = 8  # models of one start of Triton


class Row(BaseModel):
    """What became of one architecture; `difference`: the largest of an answer's logits from the model's in memory."""

    architecture: str
    channels: int
    opset: int | None = None
    largest: float | None = None
    difference: float | None = None
    seconds: float = 0
    refused: str | None = None

    @property
    def name(self) -> str:
        """Return the name of its folder and of its model in Triton."""
        return f"{self.architecture}_{self.channels}"

    def __str__(self) -> str:
        """Return its row of the table."""
        head = f"| {self.architecture} | {SIDES[self.architecture]} | {self.channels} |"
        if self.difference is None or self.largest is None:
            return f"{head} | | refused: {self.refused} | | |"
        numbers = f"{self.largest:.1f} | {self.difference:.1e} | {self.difference / self.largest:.1e}"
        return f"{head} {self.opset} | {numbers} | {self.seconds:.0f} |"


def main() -> None:
    """Convert, verify and serve every architecture; print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--architectures", default=",".join(SIDES), help="a part of the list, with commas")
    parser.add_argument("--folder", type=Path, help="where it works, and finds what it has done before")
    arguments = parser.parse_args()
    if not HYMENOPTERA.is_dir():
        raise SystemExit(MISSING)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="nightshift-architectures-"))
    folder.mkdir(parents=True, exist_ok=True)
    rows = [Row(architecture=name, channels=count) for name in arguments.architectures.split(",") for count in (3, 1)]
    rows = [_done(folder, row) or converted(folder, row) for row in rows]
    waiting = [row for row in rows if row.difference is None and row.refused is None]
    for start in range(0, len(waiting), SERVED_AT_ONCE):
        serve(folder, waiting[start : start + SERVED_AT_ONCE])
    print("| architecture | side | channels | opset | largest logit | largest difference | relative | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    print(*rows, sep="\n")
    within = sum(row.difference is not None and row.difference <= LIMIT for row in rows)
    print(f"{within} of {len(rows)} answer within {LIMIT:g}; the work is in {folder}")
    raise SystemExit(within < len(rows))


def _done(folder: Path, row: Row) -> Row | None:
    path = folder / row.name / "row.json"
    found = Row.model_validate_json(path.read_text()) if path.exists() else None
    return found if found is not None and found.refused is None else None


def _keep(folder: Path, row: Row) -> None:
    (folder / row.name / "row.json").write_text(row.model_dump_json())


def converted(folder: Path, row: Row) -> Row:
    """Take one architecture from a checkpoint to a package; leave that and what its model in memory answers."""
    print(f"{time.strftime('%H:%M:%S')} {row.name}", flush=True)
    started, side, work = time.monotonic(), SIDES[row.architecture], folder / row.name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    how = Preprocessing(
        height=side, width=side, channels=row.channels, mean=(0.5,) * row.channels, std=(0.25,) * row.channels
    )
    photographs = sorted((HYMENOPTERA / "pictures").iterdir())[:: len(SIDES) // 5]
    seen, shown = photographs[:CALIBRATION], photographs[CALIBRATION : CALIBRATION + PICTURES]
    known = torch.from_numpy(np.stack([prepare(path, how) for path in (*seen, *shown)]))
    model = trained_like(row.architecture, known)
    torch.save(model.state_dict(), work / "best.ckpt")
    (work / "pictures").mkdir()
    for path in shown:
        shutil.copy(path, work / "pictures")
    bottle, context = FolderBottle(work / "bottle"), Context(work / "job", None)
    context.bottle = bottle
    try:
        imported = import_weights.run(
            import_weights.Arguments(
                family="classifier", architecture=row.architecture, weights=str(work / "best.ckpt"), group="g",
                img_size=(side, side), channels=row.channels, mean=how.mean, std=how.std, labels=",".join(LABELS),
                pictures=str(work / "pictures"),
            ),
            context,
        )  # fmt: skip
        name = imported.experiment
        export_onnx.run(export_onnx.Arguments(experiment=name), context)
        verify_onnx.run(verify_onnx.Arguments(experiment=name, snapshot_id=imported.snapshot_id), context)
        package = package_model.run(package_model.Arguments(experiment=name, model_name=row.name), context)
    except JobError as error:
        row = row.model_copy(update={"refused": str(error)})
        print(f"refused: {error}", flush=True)
        _keep(folder, row)
        return row
    inputs = Reference(bottle.local(Experiment(name).reference)).inputs
    with torch.inference_mode():
        wanted = model(torch.from_numpy(inputs)).numpy()  # the very model: no trace, no checkpoint read
    np.savez(work / "wanted.npz", inputs=inputs, wanted=wanted)
    shutil.copy(bottle.local(package.archive), work / "package.zip")
    row = row.model_copy(
        update={
            "opset": interface(split_file(bottle.local(Experiment(name).onnx))).opset,
            "largest": float(np.abs(wanted).max()),
            "seconds": time.monotonic() - started,
        }
    )
    shutil.rmtree(work / "bottle")
    (work / "best.ckpt").unlink()
    _keep(folder, row)
    return row


def trained_like(architecture: str, pictures: Tensor) -> nn.Module:
    """Return a classifier with weights as timm draws them, but nothing hidden, in evaluation mode.

    Fresh weights make many a block an identity (scales of 0 or 1e-6) and many a normalization one (statistics 0 and 1):
    a wrong graph would agree. So such scales are drawn anew, position biases count as after training, and the
    statistics are those of `pictures` [n, C, H, W]. With statistics of other inputs (noise) values grow from block to
    block, until float32 itself is far from float64 and no two programs agree. The logits spread over several units.
    """
    torch.manual_seed(0)
    model = Classifier(architecture, len(LABELS), pictures.shape[1])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 1 and parameter.abs().max() < 1e-2 and not name.endswith("bias"):
                parameter.uniform_(*SCALES.get(architecture, (0.5, 1.5)))
            if "relative_position_bias" in name or "pos_embed" in name:
                parameter.normal_(0, 0.5)
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if name.endswith(("qkv.bn", "kv.bn", "q.ln.bn")):
                    module.weight.fill_(ATTENTION)
                module.momentum = None  # the mean over what it sees
        model.train()(pictures)
        model.eval()
        features = model.backbone(pictures)
        model.fc.weight.mul_(2 / (features @ model.fc.weight.T).std().clamp(min=1e-6))
    return model


def serve(folder: Path, rows: list[Row]) -> None:
    """Load the packages of `rows` into one Triton; note how far its answers are from those of the models in memory."""
    with tempfile.TemporaryDirectory(prefix="nightshift-triton-") as scratch:
        state = Path(scratch)
        server = TritonServer(state / "models", state / "triton", *free_ports(3), log=folder / "triton.log")
        for row in rows:
            target = server.repository / row.name
            with zipfile.ZipFile(folder / row.name / "package.zip") as files:
                files.extractall(target)
            (target / "1").mkdir()
            (target / "model.onnx").rename(target / "1" / "model.onnx")
        with server:
            server.wait_ready(120)
            os.environ["NIGHTSHIFT_TRITON_URL"] = server.http
            for row in rows:
                control = f"http://{server.http}/v2/repository/models/{row.name}/load"
                httpx.post(control, json={}, headers=server.http_headers, timeout=300).raise_for_status()
            for row in rows:
                with np.load(folder / row.name / "wanted.npz") as kept:
                    inputs, wanted = kept["inputs"], kept["wanted"]
                row.difference = max(float(np.abs(answer - wanted).max()) for answer in answers(row.name, inputs))
                _keep(folder, row)


def answers(name: str, inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what a served model answers to `inputs`, one by one and in one batch."""
    model = ServedModel(name)
    try:
        return np.concatenate([model.ask(picture[None])[0] for picture in inputs]), model.ask(inputs)[0]
    finally:
        model.close()


if __name__ == "__main__":
    main()
