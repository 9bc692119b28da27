"""A real Triton server without a GPU: the server of the `nvidia-pytriton` wheel with an ONNX Runtime backend in Python.

It needs only the standard library, so every environment's tests can start one:

    with TritonServer(repository, state, *free_ports(3), log=state / "triton.log") as server:
        server.wait_ready()
"""

from __future__ import annotations

import hashlib
import http.client
import os
import secrets
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path
from types import TracebackType

from local.settings import HOST, ROOT, LocalStackError
from nightshift_common.patience import patience

PYTHON = "3.11"  # the stub of the Python backend is built for one minor version
BACKENDS = Path(__file__).parent / "triton_backends"
ENVIRONMENT = ROOT / ".venv" / "triton"
KEY_HEADER = "nightshift-triton-key"
RESTRICTED = ("model-repository", "shared-memory", "logging", "trace")  # a load call can bring Python along and run it


class TritonServer:
    """One Triton on the models of `repository`, in explicit mode: it serves only what it is told to load.

    Whoever tells it has to have the key of this start, which is in `key_file`.

    Args:
        repository: the model repository; made if it is missing.
        state: where the backend directory is put together.
        http_port, grpc_port, metrics_port: ports on the loopback interface.
        log: what the server writes is appended here; the cause of a model that does not load stands only in it.
        key_file: where each start leaves its key; `key` in `state` if it is left out.
        cache_mib: memory for the answers of models with `response_cache`; 0: such models are computed each time.
    """

    def __init__(
        self,
        repository: Path,
        state: Path,
        http_port: int,
        grpc_port: int,
        metrics_port: int,
        *,
        log: Path,
        key_file: Path | None = None,
        cache_mib: int = 0,
    ) -> None:
        self.repository, self.state, self.log = repository, state, log
        self.key_file = key_file or state / "key"
        self.http_port, self.grpc_port, self.metrics_port = http_port, grpc_port, metrics_port
        self.cache_mib = cache_mib
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def http(self) -> str:
        """Address of the HTTP API, `host:port`."""
        return f"{HOST}:{self.http_port}"

    @property
    def grpc(self) -> str:
        """Address of the gRPC API, `host:port`."""
        return f"{HOST}:{self.grpc_port}"

    @property
    def http_headers(self) -> dict[str, str]:
        """What a control call by HTTP has to bring."""
        return {KEY_HEADER: self.key_file.read_text()}

    @property
    def grpc_headers(self) -> dict[str, str]:
        """What a control call by gRPC has to bring; Triton puts a prefix before the header's name."""
        return {f"triton-grpc-protocol-{KEY_HEADER}": self.key_file.read_text()}

    def new_key(self) -> list[str]:
        """Make a key for the next start, leave it in `key_file` and return the arguments that ask callers for it.

        Triton takes it on its command line alone, where everybody on this machine can read it while it runs: so it
        opens nothing else and does not outlive the start.
        """
        key = secrets.token_hex(24)
        self.key_file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, made = tempfile.mkstemp(prefix=".key.", dir=self.key_file.parent)  # readable by its owner alone
        with os.fdopen(descriptor, "w") as file:
            file.write(key)
        Path(made).replace(self.key_file)
        restriction = f"{','.join(RESTRICTED)}:{KEY_HEADER}={key}"
        return [f"--http-restricted-api={restriction}", f"--grpc-restricted-protocol={restriction}"]

    def command(self) -> list[str]:
        """Return the server's command line but for the arguments of `new_key`, with the folders that it names made.

        Raises:
            LocalStackError: the environment `.venv/triton` is not installed.
        """
        self.repository.mkdir(parents=True, exist_ok=True)
        return [
            str(binary()),
            f"--model-repository={self.repository}",
            f"--backend-directory={assemble_backends(self.state / 'backends')}",
            f"--http-address={HOST}", f"--http-port={self.http_port}",
            f"--grpc-address={HOST}", f"--grpc-port={self.grpc_port}",
            f"--metrics-address={HOST}", f"--metrics-port={self.metrics_port}",
            "--model-control-mode=explicit",
            "--strict-readiness=false",  # one model that fails to load does not make the others unready
            "--disable-auto-complete-config",  # what is served is what the repository says
            "--exit-timeout-secs=5",  # clients that keep their connection would use up the default of 30
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory_prefix()}",
            *([f"--cache-config=local,size={self.cache_mib << 20}", cache_directory()] if self.cache_mib else []),
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Return what the server needs in its environment beside the caller's; see `server_environment`."""
        return server_environment()

    def start(self) -> None:
        """Start the server in a process group of its own; `wait_ready` says when it answers."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONHOME"} | self.environment()
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [*self.command(), *self.new_key()], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, env=environment,
            )  # fmt: skip

    def wait_ready(self, timeout: float = 20.0) -> None:
        """Return once the server answers.

        Raises:
            LocalStackError: it ended, or did not answer within `timeout` seconds; the message ends with its log.
        """
        started = time.monotonic()
        while not self.is_ready():
            if self._process is not None and (code := self._process.poll()) is not None:
                raise LocalStackError(f"Triton ended with code {code}; its log {self.log}:\n{self._last_lines()}")
            if (waited := time.monotonic() - started) > patience(timeout):
                raise LocalStackError(
                    f"Triton did not answer on {self.http} in {waited:.0f} s; {self.log}:\n{self._last_lines()}"
                )
            time.sleep(0.02)

    def is_ready(self) -> bool:
        """Whether the server answers."""
        connection = http.client.HTTPConnection(HOST, self.http_port, timeout=2)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def stop(self, patience: float = 8.0) -> None:
        """Stop the server and its backend processes: ask, then kill the process group. Nothing happens if none runs."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
        try:
            os.killpg(process.pid, signal.SIGKILL)  # stubs that outlived their server
        except ProcessLookupError:
            process.poll()
        process.wait()
        self.remove_shared_memory()

    def remove_shared_memory(self) -> None:
        """Remove what a killed server has left in shared memory; only for a server that does not run."""
        for left in Path("/dev/shm").glob(f"{self._shared_memory_prefix()}*"):
            left.unlink(missing_ok=True)

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _shared_memory_prefix(self) -> str:
        """Return a name that no other server on this machine uses: two that share one collide."""
        digest = hashlib.sha256(f"{self.state.absolute()}:{self.http_port}".encode()).hexdigest()
        return f"nightshift_{digest[:12]}"

    def _last_lines(self, count: int = 15) -> str:
        return (
            "\n".join(self.log.read_text(errors="replace").splitlines()[-count:]) if self.log.exists() else "(no log)"
        )


def server_environment() -> dict[str, str]:
    """Return what the wheel's server needs in its environment beside the caller's.

    Raises:
        LocalStackError: this Python has no libpython to share.
    """
    libraries = [str(_site_packages() / "nvidia_pytriton.libs"), str(libpython_folder())]
    return {
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "PATH": f"{ENVIRONMENT / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",  # the backend's Python
        "VIRTUAL_ENV": str(ENVIRONMENT),
        "PYTHONPATH": "",
        "CUDA_VISIBLE_DEVICES": "",
    }


def cache_directory() -> str:
    """Return the argument that says where the wheel's response cache is."""
    return f"--cache-directory={_wheel() / 'caches'}"


def cache_mib() -> int:
    """Return the size of the response cache, `NIGHTSHIFT_TRITON_CACHE_MIB`; 0, none, where it is not set.

    Raises:
        LocalStackError: it is no number.
    """
    text = os.environ.get("NIGHTSHIFT_TRITON_CACHE_MIB") or "0"
    if not text.isdecimal():
        raise LocalStackError(f"NIGHTSHIFT_TRITON_CACHE_MIB is {text!r}, not a number of MiB")
    return int(text)


def binary() -> Path:
    """Return the wheel's server.

    Raises:
        LocalStackError: the environment `.venv/triton` is not installed.
    """
    return _wheel() / "bin" / "tritonserver"


def assemble_backends(target: Path) -> Path:
    """Put Triton's backend directory together at `target`: the wheel's Python backend and our ones in Python.

    A complete directory that was made from the same files is left as it is, since a running server reads it.
    """
    wheel = _wheel()
    sources = {
        "python/libtriton_python.so": wheel / "backends" / "python" / "libtriton_python.so",
        "python/triton_python_backend_utils.py": wheel / "backends" / "python" / "triton_python_backend_utils.py",
        "python/triton_python_backend_stub": wheel / "python_backend_stubs" / PYTHON / "triton_python_backend_stub",
    } | {str(path.relative_to(BACKENDS)): path for path in sorted(BACKENDS.glob("*/model.py"))}
    parts = (f"{name} {path} {path.stat().st_size} {path.stat().st_mtime_ns}" for name, path in sources.items())
    stamp = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    marker = target / "made-from"
    if marker.exists() and marker.read_text() == stamp:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    for name, path in sources.items():
        (made / name).parent.mkdir(exist_ok=True)
        shutil.copy2(path, made / name)
    (made / "made-from").write_text(stamp)
    shutil.rmtree(target, ignore_errors=True)
    made.rename(target)
    return target


def libpython_folder() -> Path:
    """Return the folder of the shared libpython that the backend's stub links to.

    Raises:
        LocalStackError: this Python was built without one (Triton would hang at its start without a word).
    """
    name = f"libpython{PYTHON}.so.1.0"
    library, multiarch = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("MULTIARCH")
    folders = [Path(library)] if library else []
    folders += [Path(library) / multiarch] if library and multiarch else []
    folders += [Path("/usr/lib") / multiarch] if multiarch else []
    for folder in folders:
        if (folder / name).exists():
            return folder
    raise LocalStackError(
        f"Triton's Python backend needs {name}, which is not in {', '.join(map(str, folders)) or 'any known folder'}: "
        f"install the package libpython{PYTHON}, or use a Python that was built with --enable-shared "
        f"(pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared)"
    )


def _site_packages() -> Path:
    return ENVIRONMENT / "lib" / f"python{PYTHON}" / "site-packages"


def _wheel() -> Path:
    path = _site_packages() / "pytriton" / "tritonserver"
    if not (path / "bin" / "tritonserver").exists():
        raise LocalStackError(f"{path} is not there: install it with `python3.11 -m local.bootstrap triton`")
    return path
