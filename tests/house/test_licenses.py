"""The license is there as its authors wrote it, and every image says under which one it comes."""

import hashlib
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Of the text at apache.org/licenses/LICENSE-2.0.txt, as most Python packages under this license carry it.
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_the_license_is_the_whole_text_and_the_project_names_it() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert all((ROOT / name).is_file() for name in project["license-files"])


def test_every_image_says_its_license_and_the_one_with_ultralytics_says_agpl() -> None:
    found = {}
    for file in sorted((ROOT / "docker").glob("*.Dockerfile")):
        text = file.read_text()
        copied = r"^COPY (LICENSE NOTICE|--from=\w+ /opt/nightshift/LICENSE /opt/nightshift/NOTICE) \./$"
        stages = text.count("\nLABEL ") if file.name == "models.Dockerfile" else 1  # its stages have bases of their own
        licensed = re.findall(copied, text, re.MULTILINE)
        assert len(licensed) == stages, f"{file.name}: whoever gets the image gets the license too"
        for label in re.findall(r"^LABEL (?:.*\\\n)*.*$", text, re.MULTILINE):
            values = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', label))
            found[values["title"]] = values.get("licenses", "")
    assert len(found) == 10, found
    expected = dict.fromkeys(found, "Apache-2.0") | {
        "nightshift-detection": "AGPL-3.0-only",
        "nightshift-tensorrt": "Apache-2.0 AND LicenseRef-NVIDIA-Deep-Learning-Container",
        "nightshift-models": "Apache-2.0 AND LicenseRef-NVIDIA-Deep-Learning-Container",
        "nightshift-triton": "Apache-2.0 AND LicenseRef-NVIDIA-Deep-Learning-Container",
    }
    assert found == expected
