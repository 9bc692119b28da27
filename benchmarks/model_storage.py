"""Model storage: uploads against `cp` and `sha256sum`, deployment under traffic, big catalogs.

    .venv/services/bin/python -m benchmarks.model_storage            # everything, a few minutes
    .venv/services/bin/python -m benchmarks.model_storage upload     # one part

Limits: a 1 GiB upload reaches half the speed of cp + sha256sum of the same file with under 150 MiB of memory;
16 clients with 64 MiB each get what they sent; changing versions fails no request; with 100,000 versions of 1,000
models, listing one model and its history take under 50 ms.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import psycopg2
from psycopg2.extras import execute_values

from local import postgres
from local.settings import HOST, ROOT
from local.triton import TritonServer
from services.model_storage.production.history import History
from services.model_storage.repository.record import Record
from tests.services.model_storage.support import ask_scale, model_zip
from tests.support.servers import free_ports
from tests.support.tiny_onnx import scaling_config, scaling_model

TOKEN = "a token for the benchmark"
MIB = 1 << 20


@dataclass
class Stack:
    """A model storage as a process of its own, on a real PostgreSQL and Triton."""

    folder: Path
    triton: TritonServer
    database_url: str
    process: psutil.Process
    client: httpx.Client


def wait_for(condition: Callable[[], bool]) -> None:
    """Return once `condition()` is true."""
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("the stack does not answer after 120 s")
        time.sleep(0.05)


@contextmanager
def stack(prepare: Callable[[Path, str], None] = lambda *_: None) -> Iterator[Stack]:
    """Run everything in a temporary folder; `prepare` fills repository and database before the service starts."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_FOLDER")) as name:
        folder = Path(name)
        folder.chmod(0o755)
        port, service_port = free_ports(2)
        url = f"postgresql://postgres:secret@{HOST}:{port}/postgres"
        triton = TritonServer(folder / "models", folder / "triton", *free_ports(3), log=folder / "triton.log")
        postgres.initialize(folder / "postgres", "secret")
        database = subprocess.Popen(postgres.command(folder / "postgres", port), stderr=subprocess.DEVNULL)
        environment = os.environ | {
            "MODEL_STORAGE_REPOSITORY": str(triton.repository),
            "MODEL_STORAGE_DATABASE_URL": url,
            "MODEL_STORAGE_TRITON_GRPC": triton.grpc,
            "MODEL_STORAGE_TRITON_KEY_FILE": str(triton.key_file),
            "MODEL_STORAGE_TOKENS": json.dumps(
                {"benchmark": {"token": TOKEN, "scopes": ["read", "publish", "promote"]}}
            ),
            "MODEL_STORAGE_PORT": str(service_port),
        }
        client = httpx.Client(
            base_url=f"http://{HOST}:{service_port}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=300
        )
        service = None
        try:
            wait_for(lambda: postgres.answers(url))
            with triton:
                triton.wait_ready()
                prepare(triton.repository, url)
                service = subprocess.Popen(
                    [sys.executable, "-m", "services.model_storage"],
                    cwd=ROOT,
                    env=environment,
                    stdout=subprocess.DEVNULL,
                )
                wait_for(lambda: _is_ready(client))
                yield Stack(folder, triton, url, psutil.Process(service.pid), client)
        finally:
            for process, number in ((service, 15), (database, postgres.STOP_SIGNAL)):
                if process is not None:
                    process.send_signal(number)
                    process.wait()
            postgres.remove(folder / "postgres")


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").is_success
    except httpx.HTTPError:
        return False


def archive_of(path: Path, megabytes: int, seed: int = 0) -> Path:
    """Write an archive whose plan has `megabytes` of what does not compress; stored, as package_model does it."""
    block = hashlib.shake_256(seed.to_bytes(8, "big")).digest(MIB)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("meta.json", json.dumps({"seed": seed}))
        with archive.open("model.plan", "w", force_zip64=True) as plan:
            for number in range(megabytes):
                plan.write(number.to_bytes(8, "big") + block[8:])
    return path


def upload(running: Stack, model: str, archive: Path) -> dict[str, str]:
    """Send an archive with curl, which costs the machine less than a client in Python; return the answer."""
    command = ["curl", "-sS", f"{running.client.base_url}/upload_new_version/", "-H", f"Authorization: Bearer {TOKEN}"]
    command += ["-H", "Expect:", "-F", f"src_file=@{archive}", "-F", f"model_name={model}"]
    answer: dict[str, str] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return answer


def measure_upload() -> bool:
    """1 GiB against cp + sha256sum, and the memory that the service takes for it."""
    ratios, peaks = [], []
    with stack() as running:
        archive = archive_of(running.folder / "big.zip", 1024)
        for attempt in range(3):
            started = time.perf_counter()
            subprocess.run(["cp", str(archive), str(running.folder / "copy")], check=True)
            subprocess.run(["sha256sum", str(archive)], check=True, stdout=subprocess.DEVNULL)
            yardstick = time.perf_counter() - started
            (running.folder / "copy").unlink()
            memory = _Peak(running.process)
            started = time.perf_counter()
            with memory:
                answer = upload(running, f"big{attempt}", archive)
            seconds = time.perf_counter() - started
            assert answer == {"version": "0.0.1"}, answer
            ratios.append(yardstick / seconds)
            peaks.append(memory.megabytes)
            print(f"  1 GiB: upload {seconds:.1f} s, cp + sha256sum {yardstick:.1f} s, memory {peaks[-1]:.0f} MiB")
    ratio = statistics.median(ratios)
    print(f"  -> {ratio:.2f} of cp + sha256sum (at least 0.5), memory {max(peaks):.0f} MiB (under 150)")
    return ratio >= 0.5 and max(peaks) < 150


def measure_many() -> bool:
    """16 clients with 64 MiB each: 8 to one model, 8 to models of their own."""
    with stack() as running:
        archives = [archive_of(running.folder / f"{i}.zip", 64, seed=i + 1) for i in range(16)]
        models = ["shared" if i < 8 else f"own{i}" for i in range(16)]
        started = time.perf_counter()
        with _Peak(running.process) as memory, ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda i: upload(running, models[i], archives[i]), range(16)))
        seconds = time.perf_counter() - started
        right = 0
        for model, answer, archive in zip(models, answers, archives, strict=True):
            version = running.client.get(f"/models/{model}/versions/{answer['version']}").json()
            plan = running.triton.repository / model / str(version["triton_version"]) / "model.plan"
            with zipfile.ZipFile(archive) as opened, opened.open("model.plan") as sent, plan.open("rb") as stored:
                right += _digest(sent) == _digest(stored)
        versions = len(running.client.get("/models/shared/versions").json())
    print(f"  16 x 64 MiB in {seconds:.1f} s, {right}/16 correct, {versions} versions of the shared model, "
          f"memory {memory.megabytes:.0f} MiB")  # fmt: skip
    return right == 16 and versions == 8


def measure_deployment() -> bool:
    """Versions change 20 times while four clients ask without pause."""
    answers: list[float] = []
    failures: list[str] = []
    stop = threading.Event()
    with stack() as running:
        for scale in (2.0, 3.0):
            form = {"model_name": "digits"}
            running.client.post("/upload_new_version/", files={"src_file": model_zip("digits", scale)}, data=form)
        running.client.post("/models/digits/versions/0.0.1/promote").raise_for_status()

        def ask() -> None:
            while not stop.is_set():
                try:
                    answers.append(ask_scale(running.triton, "digits"))
                except Exception as error:  # noqa: BLE001 - every failure counts
                    failures.append(str(error))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        times = []
        for turn in range(20):
            started = time.perf_counter()
            running.client.post(f"/models/digits/versions/0.0.{2 - turn % 2}/promote").raise_for_status()
            times.append(time.perf_counter() - started)
        stop.set()
        for thread in threads:
            thread.join()
    wrong = [answer for answer in answers if answer not in (2.0, 3.0)]
    print(f"  {len(answers)} requests over 20 changes, {len(failures)} failed, {len(wrong)} answered wrongly; "
          f"a promotion takes {statistics.median(times):.2f} s")  # fmt: skip
    return not failures and not wrong and len(answers) > 100


def measure_catalog() -> bool:
    """100 versions and 100 promotions of each of 1,000 models."""

    def fill(repository: Path, url: str) -> None:
        History(url).prepare()
        now = datetime.now(UTC)
        for m in range(1000):
            model = f"model{m}"
            (repository / model / ".versions").mkdir(parents=True)
            (repository / model / "config.pbtxt").write_text(scaling_config(model))
            for v in range(1, 101):
                record = Record(
                    model=model, version=f"0.0.{v}", triton_version=v, target="onnx", sha256="0" * 64,
                    content_sha256=f"{v:064}", created_at=now, files={}, meta={"model_version": f"0.0.{v}"},
                )  # fmt: skip
                (repository / model / ".versions" / record.version).write_text(record.model_dump_json())
                (repository / model / str(v)).mkdir()
            (repository / model / "100" / "model.onnx").write_bytes(scaling_model(2.0))
        with psycopg2.connect(url) as connection, connection.cursor() as cursor:
            rows: list[tuple[object, ...]] = [
                (f"model{m}", "promote", f"0.0.{v}", v, "onnx") for v in range(1, 100) for m in range(1000)
            ]
            rows += [(f"model{m}", "unload", None, None, None) for m in range(1000)]
            execute_values(
                cursor,
                "INSERT INTO model_storage.promotions (model, action, version, triton_version, target) VALUES %s",
                rows,
                page_size=1000,
            )
        connection.close()

    with stack(fill) as running:
        slowest = {}
        for path in ("/models/{}/versions", "/history/{}", "/models/{}/versions/0.0.50"):
            times = []
            for m in range(0, 1000, 25):  # each model for the first time: nothing of it is in the service's memory
                started = time.perf_counter()
                running.client.get(path.format(f"model{m}")).raise_for_status()
                times.append((time.perf_counter() - started) * 1000)
            slowest[path] = sorted(times)[int(len(times) * 0.95)]
            print(f"  {path}: median {statistics.median(times):.1f} ms, p95 {slowest[path]:.1f} ms (under 50)")
    return max(slowest.values()) < 50


class _Peak:
    """The most memory that a process takes while a block runs, in MiB."""

    def __init__(self, process: psutil.Process) -> None:
        self._process, self._stop, self.megabytes = process, threading.Event(), 0.0
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.megabytes = max(self.megabytes, self._process.memory_info().rss / MIB)


def _digest(handle: object) -> str:
    return hashlib.file_digest(handle, "sha256").hexdigest()  # type: ignore[arg-type]


PARTS = {
    "upload": measure_upload,
    "many": measure_many,
    "deployment": measure_deployment,
    "catalog": measure_catalog,
}


def main() -> None:
    """Run the parts that the command line names, exit 1 where a limit is not kept."""
    names = sys.argv[1:] or list(PARTS)
    kept = {}
    for name in names:
        print(f"{name}: {PARTS[name].__doc__}")
        kept[name] = PARTS[name]()
    missed = [name for name, ok in kept.items() if not ok]
    print("every limit is kept" if not missed else f"limits missed: {', '.join(missed)}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
