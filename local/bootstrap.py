"""Makes the environments under `.venv/`: run by `make`, with nothing but Python 3.11's standard library.

    python3.11 -m local.bootstrap services airflow jobs     # the named environments
    python3.11 -m local.bootstrap --test all                # every environment, with what the tests need

An environment is made anew when its locked requirements change, by uv, which this module installs first. What is
installed has one of the hashes in the locks, uv too; `install_torch` says where torch's builds are an exception.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
REQUIREMENTS = ROOT / "requirements"
ENVIRONMENTS = ("airflow", "jobs", "services", "triton", "detection")
WITH_TORCH = ("jobs", "detection")
TOOLS = ("tools", "sbom")  # what Nightshift is checked and described with
TORCH = REQUIREMENTS / "torch.in"
WITHOUT_DEPENDENCIES = ("jobs", "triton")  # each has a lock of packages that ask for more than is used of them
LOCKED_CUDA = (
    "cu130"  # the build of torch that PyPI has, and so the one whose hashes, with all of CUDA's, can be locked
)
# A lock is complete: what a package asks for is not looked up again, and nothing is installed without a known hash.
VERIFIED = ("--no-deps", "--require-hashes")
SHIM = Path(__file__).parent / "torchvision_cpu" / "nightshift_torchvision_cpu.py"


def main() -> None:
    """Make the environments that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("environments", nargs="+", choices=[*ENVIRONMENTS, *TOOLS, "all"])
    parser.add_argument("--test", action="store_true", help="install what the tests need too")
    options = parser.parse_args()
    if sys.version_info[:2] != (3, 11):
        sys.exit(
            f"Nightshift needs Python 3.11, not {sys.version.split()[0]}; say which: make PYTHON=/path/to/python3.11 …"
        )
    names = list(ENVIRONMENTS) if "all" in options.environments else [n for n in options.environments if n != "tools"]
    started = time.monotonic()
    install_tools(with_linters="tools" in options.environments or "all" in options.environments)
    todo = [name for name in names if not is_current(name, options.test)]
    if todo:
        print(f"installing the environments: {', '.join(todo)} (once, or when requirements/ changes)", flush=True)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda name: install(name, options.test), todo))
        print(f"installed in {time.monotonic() - started:.0f} s", flush=True)


def install_tools(with_linters: bool) -> None:
    """Install uv, and with `with_linters` all of requirements/tools.txt, into `.venv/tools`."""
    if not (VENV / "tools" / "bin" / "uv").exists():
        run([sys.executable, "-m", "venv", "--clear", str(VENV / "tools")])
        pip = [str(VENV / "tools" / "bin" / "pip"), "install", "--quiet", "--require-hashes"]
        run([*pip, "--requirement", str(REQUIREMENTS / "uv.txt")])
    if with_linters and not is_current("tools", test=False):
        install_verified(VENV / "tools", [REQUIREMENTS / "tools.txt"])
        stamp("tools").write_text(digest("tools", test=False))


def install(name: str, test: bool) -> None:
    """Make the environment `name` from its locked requirements; a half-made one is made anew."""
    folder = VENV / name
    test = test or (stamp(name).exists() and stamp(name).read_text() == digest(name, test=True))
    lacks_tests = is_current(name, test=False)
    stamp(name).unlink(missing_ok=True)
    if not lacks_tests:  # what is no longer listed goes, too
        uv("venv", "--quiet", "--clear", "--python", sys.executable, str(folder))
    files = [REQUIREMENTS / f"{name}.txt"] + ([REQUIREMENTS / f"{name}-test.txt"] if test and has_tests(name) else [])
    if name in WITH_TORCH:
        install_verified(folder, files, "--excludes", str(TORCH))
        backend = torch_backend()
        install_torch(folder, name, backend)
        if name == "jobs" and has_cuda(backend) and (gpu := REQUIREMENTS / "jobs-gpu.txt").exists():
            install_verified(folder, [gpu])  # the image for conversion goes without
    else:
        install_verified(folder, files)
    if name in WITHOUT_DEPENDENCIES:
        install_verified(folder, [REQUIREMENTS / f"{name}-without-dependencies.txt"])
    if name in WITH_TORCH:
        make_torchvision_importable(folder)
    stamp(name).write_text(digest(name, test))


def install_verified(folder: Path, files: list[Path], *options: str) -> None:
    """Install what locks list, and nothing else; whatever has none of their hashes is refused."""
    named = [arg for file in files for arg in ("--requirement", str(file))]
    uv("pip", "install", "--python", str(folder), *VERIFIED, *options, *named)


def install_torch(folder: Path, name: str, backend: str | None) -> None:
    """Install torch and torchvision.

    A wheel at hand must have the hash in the environment's lock, and the build for CUDA 13.0 comes with all its
    libraries from a lock of its own. Of the other builds, which PyTorch's own indexes have, and of the libraries that
    they bring along, only the version is pinned.
    """
    if backend == LOCKED_CUDA:
        install_verified(folder, [REQUIREMENTS / f"torch-{LOCKED_CUDA}.txt"])
        return
    lock = str(REQUIREMENTS / f"{name}.txt")
    # A requirement without a hash takes those of its constraint.
    how = ["--no-deps", "--verify-hashes"] if backend is None else ["--no-verify-hashes", f"--torch-backend={backend}"]
    uv("pip", "install", "--python", str(folder), *how, "--requirement", str(TORCH), "--constraint", lock)


def torch_backend() -> str | None:
    """Return which of torch's builds uv takes for this machine, in its words; None where a wheel is at hand locally."""
    local = [Path(folder) for folder in find_links()]
    if any(folder.is_dir() and list(folder.glob("torch-*.whl")) for folder in local):
        return None
    return os.environ.get("NIGHTSHIFT_TORCH_BACKEND", "auto")


def has_cuda(backend: str | None) -> bool:
    """Whether torch comes for CUDA: as asked for, or where this machine has NVIDIA's driver; no wheel at hand does."""
    if backend == "auto":
        return shutil.which("nvidia-smi") is not None
    return backend is not None and backend.startswith("cu")


def has_tests(name: str) -> bool:
    """Whether tests run in the environment and need more than it has."""
    return name not in ("triton", *TOOLS)


def find_links() -> list[str]:
    """Return the folders of wheels that pip is configured to look in; uv does not read pip's configuration."""
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.find-links"], capture_output=True, text=True
    )
    return (os.environ.get("PIP_FIND_LINKS") or asked.stdout).split()


def make_torchvision_importable(folder: Path) -> None:
    """Install the shim where torchvision's compiled operators do not fit torch's build."""
    site = folder / "lib" / "python3.11" / "site-packages"
    shim, hook = site / SHIM.name, site / "nightshift_torchvision_cpu.pth"
    shim.unlink(missing_ok=True)
    hook.unlink(missing_ok=True)
    python = str(folder / "bin" / "python")
    if subprocess.run([python, "-c", "import torchvision"], capture_output=True).returncode != 0:
        shutil.copyfile(SHIM, shim)
        hook.write_text(f"import {SHIM.stem}\n")
        run([python, "-c", "import torchvision"])


def is_current(name: str, test: bool) -> bool:
    """Whether the environment was finished with today's requirements (tests' ones included where `test`)."""
    found = stamp(name).read_text() if stamp(name).exists() else ""
    return found == digest(name, test=True) or (not test and found == digest(name, test=False))


def stamp(name: str) -> Path:
    """Return the file that says which requirements an environment was made from."""
    return VENV / name / ".nightshift-requirements"


def digest(name: str, test: bool) -> str:
    """Return a digest of everything that an environment is made from."""
    locks = [name, *([f"{name}-test"] if test else [])]
    locks += [f"{name}-without-dependencies"] if name in WITHOUT_DEPENDENCIES else []
    locks += [f"torch-{LOCKED_CUDA}"] if name in WITH_TORCH else []
    locks += ["jobs-gpu"] if name == "jobs" else []
    content = b"".join(f.read_bytes() for f in [*(REQUIREMENTS / f"{lock}.txt" for lock in locks), SHIM] if f.exists())
    return hashlib.sha256(content + repr(test and has_tests(name)).encode()).hexdigest()


def uv(*arguments: str, wheels: list[str] | None = None) -> None:
    """Run uv with folders of wheels beside its index, by default those of pip.

    It compiles bytecode, since uncompiled imports are two to three times slower at every start.
    """
    folders = ",".join(find_links() if wheels is None else wheels)
    environment = {**os.environ, "UV_COMPILE_BYTECODE": "1", "UV_FIND_LINKS": folders}
    run([str(VENV / "tools" / "bin" / "uv"), "--quiet", *arguments], environment)


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a command; show what it printed only if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        sys.exit(f"this failed: {' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
