"""Compiles `requirements/*.in` to the pins and hashes in `requirements/*.txt`. No download addresses are written."""

import re
import sys

from local.bootstrap import REQUIREMENTS, find_links, torch_backend, uv

# The tests' files are constrained by the files that they add to, so those come first.
ORDER = (
    *("uv", "sbom", "tools", "airflow", "jobs", "detection", "services", "triton", "torch-cu130"),
    *("jobs-gpu", "jobs-without-dependencies", "triton-without-dependencies"),
    *("airflow-test", "jobs-test", "detection-test", "services-test"),
)
ALONE = ("jobs-gpu", "jobs-without-dependencies", "triton-without-dependencies")  # installed without dependencies
TORCH = re.compile(r"^torch==.*\n(?:    --hash=.*\n)*(?:    #.*\n)*", re.MULTILINE)


def main() -> None:
    """Compile every file.

    Without a CPU wheel of torch at hand the locks would be those of PyPI's build, with CUDA's libraries in all of them.
    """
    if torch_backend() is not None:
        sys.exit("the locks are made for a CPU build of torch: put its wheel into a folder that PIP_FIND_LINKS names")
    for name in ORDER:
        compile_file(name)


def compile_file(name: str) -> None:
    """Compile one file; what is pinned already keeps its version."""
    target, overrides = REQUIREMENTS / f"{name}.txt", REQUIREMENTS / f"{name}-overrides.txt"
    from_index = name == "torch-cu130"
    if target.exists() and not from_index:  # uv would prefer torch's pin to the CPU build at hand
        target.write_text(TORCH.sub("", target.read_text()))
    uv(
        *("pip", "compile", "--python-version", "3.11", "--generate-hashes"),
        *("--no-header", "--no-emit-index-url", "--no-emit-find-links"),
        *(["--override", str(overrides)] if overrides.exists() else []),
        *(["--no-deps"] if name in ALONE else []),
        *(["--python-platform", "x86_64-manylinux_2_28"] if from_index else []),
        str((REQUIREMENTS / f"{name}.in").relative_to(REQUIREMENTS.parent)),
        *("--output-file", str(target)),
        wheels=[] if from_index else find_links(),
    )
    # A CPU build of torch that lies at hand is written with its local version, which no index has.
    target.write_text(re.sub(r"^(torch==[\d.]+)\+cpu", r"\1", target.read_text(), flags=re.MULTILINE))


if __name__ == "__main__":
    main()
