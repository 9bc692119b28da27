"""Lists what an image holds as CycloneDX 1.6, on standard output: Python packages and the operating system's.

    .venv/sbom/bin/python docker/sbom.py nightshift-training .venv/jobs/bin/python

It runs in the image while that is built, in the environment `sbom`. The same content gives the same document: it has no
time and no random number. The addresses that packages name in their metadata are left out, nobody vouches for them.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

DPKG_FORMAT = "${binary:Package}\t${Version}\t${Architecture}\n"


def main() -> None:
    """Print the document; exit with an error where CycloneDX's schema refuses it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("name", help="of the image")
    parser.add_argument("interpreters", nargs="+", help="Python interpreters, each of an environment in the image")
    options = parser.parse_args()
    text = json.dumps(document(options.name, options.interpreters), indent=1, sort_keys=True)
    if problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        sys.exit(f"the list of {options.name} is not CycloneDX: {problem}")
    print(text)


def document(name: str, interpreters: list[str]) -> dict[str, Any]:
    """Return the document of the image `name`."""
    content: dict[str, Any] = {}
    for interpreter in interpreters:
        found = python_environment(interpreter)
        content = content or found | {"components": [], "dependencies": []}
        known = {component["bom-ref"] for component in content["components"]}
        content["components"] += [entry for entry in found["components"] if entry["bom-ref"] not in known]
        content["dependencies"] += [entry for entry in found["dependencies"] if entry["ref"] not in known]
    content["components"] += [python(), *debian_packages()]
    for component in (*content["components"], *content["metadata"]["tools"]["components"]):
        component.pop("externalReferences", None)
    content["metadata"]["component"] = {"type": "container", "name": name, "bom-ref": name}
    holds = sorted(component["bom-ref"] for component in content["components"])
    content["dependencies"].append({"ref": name, "dependsOn": holds})
    return content


def python_environment(interpreter: str) -> dict[str, Any]:
    """Return the document of one environment, as CycloneDX's own tool writes it."""
    tool = Path(sys.executable).with_name("cyclonedx-py")
    options = ["--spec-version", "1.6", "--output-reproducible", "--no-validate", "--output-format", "JSON"]
    listed = subprocess.run([tool, "environment", *options, interpreter], capture_output=True, text=True)
    if listed.returncode != 0:
        sys.exit(f"{interpreter}: {listed.stderr}")
    found: dict[str, Any] = json.loads(listed.stdout)
    return found


def python() -> dict[str, Any]:
    """Return the interpreter, which the official images of Python do not install as a package."""
    version = platform.python_version()
    purl = PackageURL("generic", name="python", version=version).to_string()
    return {"type": "application", "name": "python", "version": version, "purl": purl, "bom-ref": purl}


def debian_packages() -> list[dict[str, Any]]:
    """Return the packages that dpkg knows."""
    system = platform.freedesktop_os_release()
    distro = f"{system['ID']}-{system['VERSION_ID']}"
    listed = subprocess.run(["dpkg-query", "--show", f"--showformat={DPKG_FORMAT}"], capture_output=True, text=True)
    found = []
    for line in sorted(listed.stdout.splitlines()):
        package, version, architecture = line.split("\t")
        name = package.partition(":")[0]  # libc6:amd64
        qualifiers = {"arch": architecture, "distro": distro}
        purl = PackageURL("deb", system["ID"], name, version, qualifiers).to_string()
        found.append({"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl})
    return found


if __name__ == "__main__":
    main()
