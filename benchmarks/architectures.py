"""How closely timm's architectures answer in Triton, through all jobs from a checkpoint on: with 3 channels and 1.

`.venv/jobs/bin/python -m benchmarks.architectures [--architectures resnet18,convnext_atto]`
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import cv2
import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from conversion_jobs import export_onnx, import_weights, package_model, verify_onnx
from conversion_jobs.triton.served_model import Reference, ServedModel
from jobkit.bottle import FolderBottle
from jobkit.classifier import Classifier
from jobkit.errors import JobError
from jobkit.experiment import Experiment
from jobkit.job import Context
from local.triton import TritonServer
from nightshift_common.options.conversion import ExportOptions
from tests.support.servers import free_ports

SIDES = {
    "resnet18": 64, "regnety_002": 64, "densenet121": 64, "repvgg_a0": 64, "hgnetv2_b0": 64, "efficientnet_b0": 64,
    "mobilenetv3_small_050": 64, "ghostnet_050": 64, "convnext_atto": 64, "inception_next_atto": 64,
    "edgenext_xx_small": 64, "mobilevitv2_050": 64, "fastvit_t8": 64, "poolformerv2_s12": 64, "pvt_v2_b0": 64,
    "vit_tiny_patch16_224": 224, "swin_tiny_patch4_window7_224": 224, "xcit_nano_12_p16_224": 224,
    "levit_128s": 224, "mixer_s32_224": 224,
}  # fmt: skip
"""Architectures, each of another family of timm's, and the pictures' side: those of 224 take no other."""
LABELS = [f"class_{number}" for number in range(10)]
PICTURES = 8
LIMIT = 1e-4


def main() -> None:
    """Convert, verify and serve every architecture; print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--architectures", default=",".join(SIDES), help="a part of the list, with commas")
    chosen = parser.parse_args().architectures.split(",")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print("| architecture | side | channels | opset | largest logit | largest difference | relative | seconds |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    beyond = 0
    with tempfile.TemporaryDirectory(prefix="nightshift-architectures-") as scratch:
        folder = Path(scratch)
        server = TritonServer(folder / "models", folder / "triton", *free_ports(3), log=folder / "triton.log")
        with server:
            server.wait_ready(120)
            os.environ["NIGHTSHIFT_TRITON_URL"] = server.http
            for architecture in chosen:
                for channels in (3, 1):
                    where = folder / f"{architecture}_{channels}"
                    try:
                        beyond += row(server, where, architecture, channels)
                    except JobError as error:
                        beyond += 1
                        print(f"| {architecture} | {SIDES[architecture]} | {channels} | refused: {error} |", flush=True)
    print(f"{2 * len(chosen) - beyond} of {2 * len(chosen)} answer within {LIMIT:g}")
    raise SystemExit(beyond > 0)


def row(server: TritonServer, folder: Path, architecture: str, channels: int) -> bool:
    """Take one architecture all the way; print its row; return whether it answers beyond the limit."""
    started = time.monotonic()
    side = SIDES[architecture]
    write_pictures(folder / "pictures", side)
    model = trained_like(architecture, channels, side)
    torch.save(model.state_dict(), folder / "best.ckpt")
    bottle = FolderBottle(folder / "bottle")
    context = Context(folder / "job", None)
    context.bottle = bottle
    imported = import_weights.run(
        import_weights.Arguments(
            family="classifier", architecture=architecture, weights=str(folder / "best.ckpt"),
            group="g", img_size=(side, side), channels=channels, mean=[0.5] * channels, std=[0.25] * channels,
            labels=",".join(LABELS), pictures=str(folder / "pictures"),
        ),
        context,
    )  # fmt: skip
    name = imported.experiment
    export_onnx.run(export_onnx.Arguments(experiment=name), context)
    verify_onnx.run(verify_onnx.Arguments(experiment=name, snapshot_id=imported.snapshot_id), context)
    model_name = f"{architecture}_{channels}"
    package = package_model.run(package_model.Arguments(experiment=name, model_name=model_name), context)
    reference = Reference(bottle.local(Experiment(name).reference))
    with torch.inference_mode():
        wanted = model(torch.from_numpy(reference.inputs)).numpy()  # the very model: no trace, no checkpoint read
    answers = served(server, bottle.local(package.archive), model_name, reference.inputs)
    difference = max(float(np.abs(answer - wanted).max()) for answer in answers)
    largest = float(np.abs(wanted).max())
    print(
        f"| {architecture} | {side} | {channels} | {ExportOptions().opset} | {largest:.1f} | "
        f"{difference:.1e} | {difference / largest:.1e} | {time.monotonic() - started:.0f} |",
        flush=True,
    )
    return difference > LIMIT


def trained_like(architecture: str, channels: int, side: int) -> nn.Module:
    """Return a classifier with random weights in which nothing is hidden, in evaluation mode.

    Fresh weights make many a block an identity (scales of 0 or 1e-6) and many a normalization one (statistics 0 and 1):
    a wrong graph would agree. So scales are drawn around 1, statistics are those of pictures, position biases count
    as after training, and the logits are spread over several units.
    """
    torch.manual_seed(0)
    model = Classifier(architecture, len(LABELS), channels)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 1 and parameter.abs().max() < 1e-2 and not name.endswith("bias"):
                parameter.uniform_(0.5, 1.5)
            if "relative_position_bias" in name or "pos_embed" in name:
                parameter.normal_(0, 0.5)
        pictures = torch.randn(8, channels, side, side)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None  # the mean over what it sees
        model.train()(pictures)
        model.eval()
        features = model.backbone(pictures)
        model.fc.weight.mul_(2 / (features @ model.fc.weight.T).std().clamp(min=1e-6))
    return model


def write_pictures(folder: Path, side: int) -> None:
    """Write pictures of colored noise to `folder`."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(PICTURES):
        noise = random.integers(0, 255, (9 + number, 9, 3), np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(noise, (side, side)))


def served(
    server: TritonServer, archive: Path, name: str, inputs: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Load a package into Triton; return its answers to `inputs`, one by one and in one batch; unload it."""
    target = server.repository / name
    with zipfile.ZipFile(archive) as files:
        files.extractall(target)
    (target / "1").mkdir()
    (target / "model.onnx").rename(target / "1" / "model.onnx")
    control = f"http://{server.http}/v2/repository/models/{name}"
    httpx.post(f"{control}/load", json={}, headers=server.http_headers, timeout=300).raise_for_status()
    model = ServedModel(name)
    try:
        return np.concatenate([model.ask(picture[None])[0] for picture in inputs]), model.ask(inputs)[0]
    finally:
        model.close()
        httpx.post(f"{control}/unload", json={}, headers=server.http_headers, timeout=60).raise_for_status()


if __name__ == "__main__":
    main()
