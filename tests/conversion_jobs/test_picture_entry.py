"""The entry in Triton that takes pictures feeds the model the very pixels that evaluation does, whatever the file."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import InferenceServerException

from jobkit.model_spec import Preprocessing, prepare
from local.triton import TritonServer
from services.model_storage.picture_entry.files import entry_files
from tests.support.servers import free_ports
from tests.support.tiny_onnx import pixels_model

# As unlike each other as they come: the means and deviations are those of ImageNet, or none.
HOWS = {
    "color": Preprocessing(height=24, width=32, channels=3, pad_value=7),
    "gray": Preprocessing(height=31, width=17, channels=1, resize="stretch", mean=(0.0,), std=(1.0,)),
    "several": Preprocessing(height=3, width=4, channels=1, resize="stretch", mean=(0.0,), std=(1.0,)),
}
Pixels = NDArray[np.uint8]


def photograph(height: int = 61, width: int = 90) -> Image.Image:
    """Return something with edges, slopes and colors."""
    small = np.random.default_rng(3).integers(0, 255, (6, 9, 3), np.uint8)
    return Image.fromarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(photograph(), "JPEG", exif=exif)


def with_thumbnail() -> bytes:
    """Return a JPEG that holds another one, whose end comes long before its own."""
    inner = saved(photograph(12, 16), "JPEG")
    outer = saved(photograph(), "JPEG")
    segment = b"Exif\0\0" + inner
    return outer[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + outer[2:]


def sixteen_bits() -> bytes:
    values = (np.asarray(photograph().convert("L")).astype(np.uint16) << 8) + 37
    return cv2.imencode(".png", values)[1].tobytes()


FILES: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: saved(photograph(), "JPEG"),
    "progressive JPEG": lambda: saved(photograph(), "JPEG", progressive=True, quality=60),
    "gray JPEG": lambda: saved(photograph().convert("L"), "JPEG"),
    "CMYK JPEG": lambda: saved(photograph().convert("CMYK"), "JPEG"),
    "turned JPEG": lambda: turned(6),
    "mirrored JPEG": lambda: turned(5),
    "JPEG with a thumbnail": with_thumbnail,
    "JPEG with a tail": lambda: saved(photograph(), "JPEG") + b"SEFT\0\0 what a telephone appends",
    "PNG with alpha": lambda: saved(photograph().convert("RGBA").rotate(20, fillcolor=(9, 8, 7, 0)), "PNG"),
    "PNG with a palette": lambda: saved(photograph().quantize(16), "PNG"),
    "PNG of 16 bits": sixteen_bits,
    "PNG of 1 bit": lambda: saved(photograph().convert("1"), "PNG"),
    "WebP": lambda: saved(photograph(), "WEBP"),
    "BMP": lambda: saved(photograph(), "BMP"),
    "TIFF": lambda: saved(photograph(), "TIFF"),
    "one pixel": lambda: saved(photograph(1, 1), "PNG"),
    "a thin line": lambda: saved(photograph(2, 900), "PNG"),
    "huge JPEG": lambda: saved(photograph(4000, 6000), "JPEG"),
}
TORN = {
    "JPEG": lambda: FILES["JPEG"]()[:-40],
    "progressive JPEG": lambda: FILES["progressive JPEG"]()[:-200],
    "JPEG with a thumbnail": lambda: with_thumbnail()[:-100],
    "header of a JPEG": lambda: FILES["JPEG"]()[:300],
    "PNG": lambda: FILES["PNG with alpha"]()[:-200],
}


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A Triton with, for each preparation, a model that gives its input back, and its entry."""
    folder = tmp_path_factory.mktemp("pictures")
    server = TritonServer(folder / "models", folder / "state", *free_ports(3), log=folder / "triton.log")
    for name, how in HOWS.items():
        size = how.channels * how.height * how.width
        model, entry = server.repository / name, server.repository / f"{name}_jpeg"
        (model / "3").mkdir(parents=True)
        (model / "3" / "model.onnx").write_bytes(pixels_model(how.channels, how.height, how.width))
        (model / "config.pbtxt").write_text(
            f'name: "{name}"\nplatform: "onnxruntime_onnx"\nmax_batch_size: 2\n'
            f'input [{{ name: "input", data_type: TYPE_FP32, dims: [{how.channels}, {how.height}, {how.width}] }}]\n'
            f'output [{{ name: "probabilities", data_type: TYPE_FP32, dims: [{size}] }}]\n'
            "version_policy: { specific: { versions: [3] } }\n"
        )
        spec = {
            "labels": [str(index) for index in range(size)], "output": "probabilities", "version": "0.0.7",
            "preprocessing": how.model_dump(mode="json"), "max_batch_size": 2, "input_name": "input",
            "output_name": "probabilities", "multi_label": name == "several",
        }  # fmt: skip
        for path, content in entry_files(entry.name, name, 3, {3: spec}).items():
            (entry / path).parent.mkdir(parents=True, exist_ok=True)
            (entry / path).write_bytes(content)
    with server:
        server.wait_ready()
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            for name in (*HOWS, *(f"{name}_jpeg" for name in HOWS)):
                client.load_model(name, headers=server.grpc_headers)
        yield server


def ask(triton: TritonServer, name: str, *pictures: bytes) -> NDArray[np.float32]:
    tensor = tritonclient.http.InferInput("picture", [len(pictures), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[content] for content in pictures], np.object_))
    with tritonclient.http.InferenceServerClient(triton.http, network_timeout=60.0) as client:
        found: NDArray[np.float32] = client.infer(f"{name}_jpeg", [tensor]).as_numpy("probabilities")
    return found


@pytest.mark.parametrize("how", HOWS)
def test_the_model_gets_the_pixels_of_evaluation_whatever_the_file(
    triton: TritonServer, tmp_path: Path, how: str
) -> None:
    contents = {name: make() for name, make in FILES.items()}
    expected = {}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        expected[name] = prepare(tmp_path / name, HOWS[how]).ravel()
    alone = {name: ask(triton, how, content)[0] for name, content in contents.items()}
    names = list(contents)
    together = dict(zip(names[:7], ask(triton, how, *(contents[name] for name in names[:7])), strict=True))
    for found in (alone, together):
        different = {name: np.abs(pixels - expected[name]).max() for name, pixels in found.items()}
        assert different == dict.fromkeys(found, 0)


def test_of_several_labels_none_that_a_picture_shows_is_cut_off(triton: TritonServer) -> None:
    """The model's probabilities are the pixels: three of four columns are bright."""
    pixels = np.zeros((3, 4), np.uint8)
    pixels[:, :3] = 200
    content = cv2.imencode(".png", pixels)[1].tobytes()
    tensor = tritonclient.http.InferInput("picture", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[content]], np.object_))
    with tritonclient.http.InferenceServerClient(triton.http, network_timeout=60.0) as client:
        answer = client.infer("several_jpeg", [tensor])
    assert [int(name) for name in answer.as_numpy("labels")[0]] == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert answer.as_numpy("label_probabilities")[0] == pytest.approx(np.full(9, 200 / 255), abs=1e-6)


@pytest.mark.parametrize("name", TORN)
def test_a_torn_picture_is_refused_and_the_next_one_is_answered(triton: TritonServer, name: str) -> None:
    with pytest.raises(InferenceServerException, match=r"picture 2 of 2: it is torn"):
        ask(triton, "color", FILES["JPEG"](), TORN[name]())
    assert np.isfinite(ask(triton, "color", FILES["JPEG"]())).all()


def test_a_picture_whose_pixels_would_take_the_memory_is_refused(triton: TritonServer) -> None:
    side = 30_000  # 2.7 GB once decoded, 3 MB as a file
    row = zlib.compressobj(9)
    data = b"".join(row.compress(b"\0" + bytes(side * 3)) for _ in range(side // 10)) + row.flush()
    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    parts = [len(d).to_bytes(4, "big") + k + d + zlib.crc32(k + d).to_bytes(4, "big") for k, d in chunks]
    with pytest.raises(InferenceServerException, match="more than 200 million pixels"):
        ask(triton, "color", b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert np.isfinite(ask(triton, "color", FILES["JPEG"]())).all()
