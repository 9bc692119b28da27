"""Makes the environments under `.venv/`: run by `make`, with nothing but Python 3.11's standard library.

    python3.11 -m local.bootstrap services airflow jobs     # the named environments
    python3.11 -m local.bootstrap --test all                # every environment, with what the tests need

An environment is made anew when its locked requirements change, by uv, which this module installs first.
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
UV_VERSION = "0.13.8"
# The server inside nvidia-pytriton needs none of the Python packages that the wheel asks for; of nvidia-modelopt only
# AutoCast is used, which needs what requirements/jobs.in names and none of its ninety packages for language models.
WITHOUT_DEPENDENCIES = {"triton": ["nvidia-pytriton==0.7.0"], "jobs": ["nvidia-modelopt==0.47.0"]}
SHIM = Path(__file__).parent / "torchvision_cpu" / "nightshift_torchvision_cpu.py"


def main() -> None:
    """Make the environments that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("environments", nargs="+", choices=[*ENVIRONMENTS, "tools", "all"])
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
        run([str(VENV / "tools" / "bin" / "pip"), "install", "--quiet", f"uv=={UV_VERSION}"])
    if with_linters and not is_current("tools", test=False):
        uv("pip", "install", "--python", str(VENV / "tools"), "--requirement", str(REQUIREMENTS / "tools.txt"))
        stamp("tools").write_text(digest("tools", test=False))


def install(name: str, test: bool) -> None:
    """Make the environment `name` from its locked requirements; a half-made one is made anew."""
    folder = VENV / name
    test = test or (stamp(name).exists() and stamp(name).read_text() == digest(name, test=True))
    stamp(name).unlink(missing_ok=True)
    if not (folder / "bin" / "python").exists():
        uv("venv", "--quiet", "--clear", "--python", sys.executable, str(folder))
    files = [REQUIREMENTS / f"{name}.txt"] + ([REQUIREMENTS / f"{name}-test.txt"] if test and name != "triton" else [])
    options = torch_backend() if name in WITH_TORCH else []
    # What Ultralytics asks for is overridden when its file is compiled, and asked for again by its wheel.
    options += ["--no-deps"] if name == "detection" else []
    uv("pip", "install", "--python", str(folder), *options, *(arg for f in files for arg in ("--requirement", str(f))))
    gpu = REQUIREMENTS / "jobs-gpu.txt"  # the image for conversion goes without
    if name == "jobs" and has_cuda(options) and gpu.exists():
        uv("pip", "install", "--python", str(folder), "--no-deps", "--requirement", str(gpu))
    for package in WITHOUT_DEPENDENCIES.get(name, []):
        uv("pip", "install", "--python", str(folder), "--no-deps", package)
    if name in WITH_TORCH:
        make_torchvision_importable(folder)
    stamp(name).write_text(digest(name, test))


def torch_backend() -> list[str]:
    """Return uv's option that picks torch's build for this machine: none where a wheel is at hand locally."""
    local = [Path(folder) for folder in find_links()]
    if any(folder.is_dir() and list(folder.glob("torch-*.whl")) for folder in local):
        return []
    return [f"--torch-backend={os.environ.get('NIGHTSHIFT_TORCH_BACKEND', 'auto')}"]


def has_cuda(options: list[str]) -> bool:
    """Whether torch comes for CUDA by these options: as asked for, or where this machine has NVIDIA's driver."""
    backend = options[0].partition("=")[2] if options else "cpu"
    return backend.startswith("cu") or (backend == "auto" and shutil.which("nvidia-smi") is not None)


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
    files = (
        [REQUIREMENTS / f"{name}.txt", REQUIREMENTS / f"{name}-test.txt"] if test else [REQUIREMENTS / f"{name}.txt"]
    )
    if name == "jobs":
        files.append(REQUIREMENTS / "jobs-gpu.txt")
    content = b"".join(f.read_bytes() for f in [*files, SHIM] if f.exists())
    extra = repr((WITHOUT_DEPENDENCIES.get(name), test and name not in ("triton", "tools")))
    return hashlib.sha256(content + extra.encode()).hexdigest()


def uv(*arguments: str) -> None:
    """Run uv; it compiles bytecode, since uncompiled imports are two to three times slower at every start."""
    environment = {**os.environ, "UV_COMPILE_BYTECODE": "1", "UV_FIND_LINKS": ",".join(find_links())}
    run([str(VENV / "tools" / "bin" / "uv"), "--quiet", *arguments], environment)


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a command; show what it printed only if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        sys.exit(f"this failed: {' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
