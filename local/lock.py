"""Compiles `requirements/*.in` to the pins in `requirements/*.txt`. No download addresses are written."""

from pathlib import Path

from local.bootstrap import REQUIREMENTS, uv

ORDER = (
    *("airflow", "jobs", "detection", "services", "triton", "tools", "jobs-gpu"),
    *("airflow-test", "jobs-test", "detection-test", "services-test"),
)


def main() -> None:
    """Compile every file; the tests' files are constrained by the files that they add to, so those come first."""
    for name in ORDER:
        target, overrides = REQUIREMENTS / f"{name}.txt", REQUIREMENTS / f"{name}-overrides.txt"
        forget_torch(target)
        uv(
            "pip",
            "compile",
            "--python-version",
            "3.11",
            "--no-header",
            "--no-emit-index-url",
            "--no-emit-find-links",
            *(["--override", str(overrides)] if overrides.exists() else []),
            str((REQUIREMENTS / f"{name}.in").relative_to(REQUIREMENTS.parent)),
            "--output-file",
            str(target),
        )
        # A CPU build of torch that lies at hand is written with its local version, which no index has.
        lines = [
            line.split("+cpu")[0] if line.startswith("torch==") else line for line in target.read_text().splitlines()
        ]
        target.write_text("\n".join(lines) + "\n")


def forget_torch(target: Path) -> None:
    """Take torch's pin out of a compiled file: uv would prefer it to the CPU build at hand."""
    if target.exists():
        lines = [line for line in target.read_text().splitlines() if not line.startswith("torch==")]
        target.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
