"""One real stack for all tests of this folder: its own state folder, its own ports."""

import os
import shutil
from collections.abc import Iterator

import pytest
from rich.console import Console

from local import postgres, stack
from local.components import python
from local.settings import PREFERRED_PORTS, ROOT, Settings, port_variable
from tests.support.servers import free_ports
from tests.support.trtexec_double import install


@pytest.fixture(scope="session")
def console() -> Console:
    return Console(force_terminal=False, width=160)


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    patch = pytest.MonkeyPatch()
    for name, port in zip(PREFERRED_PORTS, free_ports(len(PREFERRED_PORTS)), strict=True):
        patch.setenv(port_variable(name), str(port))
    found = Settings(tmp_path_factory.mktemp("stack"))
    patch.setenv("NIGHTSHIFT_STATE", str(found.state))
    pipelines = tmp_path_factory.mktemp("pipelines")  # tests add some of their own
    shutil.copy(ROOT / "configs" / "pipelines" / "digits.yaml", pipelines)
    patch.setenv("NIGHTSHIFT_PIPELINES", str(pipelines))
    # The worker's trtexec is a double that says so in its first line: no TensorRT, no plan that could be served.
    double = tmp_path_factory.mktemp("trtexec_double")
    install(double, 110100, python("jobs"))
    patch.setenv("PATH", f"{double}{os.pathsep}{os.environ['PATH']}")
    try:
        stack.up(found, print)
        yield found
    finally:
        stack.down(found, print)
        postgres.remove(found.state / "postgres")  # root's may lie outside of the state folder
        patch.undo()
        os.sync()
