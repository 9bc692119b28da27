"""What is installed where, by the options that pick torch's build."""

import pytest

from local import bootstrap


@pytest.mark.parametrize(
    ("options", "driver", "expected"),
    [
        (["--torch-backend=cu130"], False, True),
        (["--torch-backend=auto"], True, True),
        (["--torch-backend=auto"], False, False),
        (["--torch-backend=cpu"], True, False),
        ([], True, False),  # a CPU wheel lies at hand
    ],
)
def test_what_needs_cuda_comes_with_torch_for_cuda(
    options: list[str], driver: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap.shutil, "which", lambda _name: "/usr/bin/nvidia-smi" if driver else None)
    assert bootstrap.has_cuda(options) is expected
