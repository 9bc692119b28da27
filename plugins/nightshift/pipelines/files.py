"""The pipeline file: one `configs/pipelines/<name>.yaml` makes one DAG `retrain_<name>`."""

from __future__ import annotations

import difflib
from contextlib import suppress
from pathlib import Path

from nightshift.kinds import DEFAULT, KINDS
from nightshift.kinds.base import Pipeline
from nightshift.pipelines.folders import home
from nightshift_common.names import PIPELINE_RULE, is_pipeline_name
from nightshift_common.yaml_file import ConfigFile, ConfigFileError


def load_pipeline(path: Path) -> Pipeline:
    """Return the pipeline in a file, of the class of its kind.

    Raises:
        ConfigFileError: the file is wrong; the message has a line `file:line: key: what is valid` for every error.
    """
    if not path.exists() and path.with_suffix(".yml").exists():
        path = path.with_suffix(".yml")
    shown = path.relative_to(home()) if path.is_relative_to(home()) else path
    if path.suffix != ".yaml" or not is_pipeline_name(path.stem):
        raise ConfigFileError(
            f"{shown}:1: the file's name: the DAG is named after it, so it has to be <name>.yaml with a name of"
            f" {PIPELINE_RULE}"
        )
    file = ConfigFile.read(path, relative_to=home())
    pipeline = file.validate(_kind(file))
    for key, name in pipeline.named_files().items():
        if not (home() / name).is_file():
            file.add(key, f"there is no file {name} in {home()}")
            continue
        try:
            pipeline.check_file(key, home() / name, home())
        except ConfigFileError as error:
            for line in str(error).splitlines():
                file.add(key, line)
    for other in _others_that_publish(path, pipeline.publish.model_name):
        file.add(
            ("publish", "model_name"),
            f"{other.name} publishes {pipeline.publish.model_name!r} too: each would replace the other's model every "
            "night; give one of them a name of its own",
        )
    file.raise_if_any()
    return pipeline


def _others_that_publish(path: Path, model_name: str) -> list[Path]:
    """Return the pipeline files beside `path` with the same model; what cannot be read has an error of its own."""
    found: list[Path] = []
    for other in sorted(path.parent.glob("*.yaml")):
        if other != path and is_pipeline_name(other.stem):
            with suppress(ConfigFileError):
                content = ConfigFile.read(other).content
                publish = content.get("publish") if isinstance(content, dict) else None
                if isinstance(publish, dict) and publish.get("model_name") == model_name:
                    found.append(other)
    return found


def _kind(file: ConfigFile) -> type[Pipeline]:
    kind = file.content.get("kind", DEFAULT) if isinstance(file.content, dict) else DEFAULT
    if isinstance(kind, str) and kind in KINDS:
        return KINDS[kind]
    near = difflib.get_close_matches(str(kind), KINDS, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    file.fail(("kind",), f"there is no kind {kind!r}; {hint}valid: {', '.join(KINDS)}")
