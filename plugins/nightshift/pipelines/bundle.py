"""A DAG bundle with one file per pipeline, so that a broken pipeline file breaks one DAG and not all of them.

Airflow ties import errors to DAG files and takes every DAG of a file with an error out of service. All retraining DAGs
come from the one file `dags/retrain.py`; this bundle shows it to Airflow once per pipeline, as a folder of links
`retrain_<pipeline>.py -> dags/retrain.py`. The file finds its pipeline by the name that it was read under.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from airflow.configuration import conf
from airflow.dag_processing.bundles.base import BaseDagBundle

from nightshift.pipelines.folders import home, pipelines_folder

PREFIX = "retrain_"


class PipelineBundle(BaseDagBundle):
    """The retraining DAGs of `configs/pipelines/*.yaml`."""

    supports_versioning = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._path = Path(conf.get("core", "dags_folder")).parent / ".nightshift" / "pipelines"
        if state := os.environ.get("NIGHTSHIFT_STATE"):
            self._path = Path(state) / "pipelines"

    @property
    def path(self) -> Path:
        """The folder of links."""
        return self._path

    def get_current_version(self) -> str | None:
        """Return None: the folder always shows what is there now."""
        return None

    def initialize(self) -> None:
        """Make the links."""
        self.refresh()
        super().initialize()

    def refresh(self) -> None:
        """Add a link for each new pipeline file, remove those whose file is gone; safe beside other processes."""
        self._path.mkdir(parents=True, exist_ok=True)
        # A .yml file is shown too, so that Airflow says what is wrong with it.
        wanted = {f"{PREFIX}{file.stem}.py" for file in pipelines_folder().glob("*.y*ml")}
        for path in self._path.glob(f"{PREFIX}*.py"):
            if path.name not in wanted:
                path.unlink(missing_ok=True)
        target = home() / "dags" / "retrain.py"
        for name in wanted:
            path = self._path / name
            if not path.is_symlink() or path.readlink() != target:
                temporary = Path(tempfile.mktemp(prefix=".", dir=self._path))  # noqa: S306 - replaced atomically below
                with suppress(FileExistsError):
                    temporary.symlink_to(target)
                temporary.replace(path)


def pipeline_file(dag_file: str) -> Path | None:
    """Return the pipeline file of a link; None for `dags/retrain.py` itself."""
    name = Path(dag_file).stem
    return pipelines_folder() / f"{name.removeprefix(PREFIX)}.yaml" if name.startswith(PREFIX) else None
