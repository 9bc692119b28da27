"""Taking over what an earlier service, or a person, left in a repository: numbered folders without a record.

The earlier service kept `model_version` in the `meta.json` of each numbered folder, and one `config.pbtxt` a model, in
which it changed the number. The folders and that file stay as they are; a record is all that is added.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc.model_config_pb2 import ModelConfig

from nightshift_common.names import is_name
from services.model_storage.errors import Refused
from services.model_storage.repository import model_config
from services.model_storage.repository.archive import File
from services.model_storage.repository.model_config import CONFIG_FILE
from services.model_storage.repository.record import MAX_SMALL_FILE, META_FILE, NEXT, Record, Target
from services.model_storage.repository.store import CLAIM, Store, digest_of

logger = logging.getLogger(__name__)

TARGETS: dict[str, Target] = {
    "model.onnx": "onnx", "model.plan": "tensorrt", "model.pt": "pytorch", "model.py": "python",
}  # fmt: skip


def found(store: Store, model: str, numbers: Collection[int], known: Collection[str]) -> Iterator[Record]:
    """Yield a record for each of the folders `numbers` of a model; `known` are the versions that it has already.

    A folder that is empty, which a broken upload left, and one that is being uploaded get none; the log says so.
    """
    files = {number: store.tree(f"{model}/{number}") for number in sorted(numbers)}
    config = _config(store, model)
    for number in [number for number, names in files.items() if not names or CLAIM in names]:
        if not (config is not None and config.platform == "ensemble" and not files[number]):
            logger.warning("%s/%d is left alone: it is empty, or another service uploads it now", model, number)
            del files[number]
    metas = {number: _meta(store, f"{model}/{number}/{META_FILE}") for number in files}
    names = version_names({number: meta.get("model_version") for number, meta in metas.items()}, known)
    for number, paths in files.items():
        target: Target = next((TARGETS[path] for path in paths if path in TARGETS), "other")
        sums = {path: File(*digest_of(store, f"{model}/{number}/{path}")) for path in paths}
        lines = sorted(f"{file.sha256}  {path}\n" for path, file in sums.items())
        content = hashlib.sha256("".join(lines).encode()).hexdigest()
        text = model_config.to_text(config if config is not None else _generated(store, f"{model}/{number}", target))
        logger.info("took over %s/%d as version %s (%s, %d files)", model, number, names[number], target, len(sums))
        yield Record(
            model=model, version=names[number], triton_version=number, target=target, sha256=content,
            content_sha256=content, created_at=datetime.now(UTC), files=sums, meta=metas[number], taken_over=text,
        )  # fmt: skip


def version_names(told: Mapping[int, Any], known: Collection[str]) -> dict[int, str]:
    """Return a version for each numbered folder, by what its `meta.json` told; `known` are taken already.

    A folder keeps its version where it has one that can be a name. Of two with one version the later gets its number
    added (`0.0.2-3`), and one without a version becomes `0.0.<number>`.
    """
    names: dict[int, str] = {}
    taken = set(known)
    rest = []
    for number, wanted in sorted(told.items()):
        name = "" if wanted is None else str(wanted)
        if is_name(name) and name != NEXT and name not in taken:
            names[number] = name
            taken.add(name)
        else:
            rest.append((number, name if is_name(name) and name != NEXT else ""))
    for number, name in rest:
        made = f"{name}-{number}" if name else f"0.0.{number}"
        while made in taken or not is_name(made):
            made = f"0.0.{number}-{len(taken)}"
        names[number] = made
        taken.add(made)
        had = "no version" if told[number] is None else f"the version {told[number]!r}, which cannot be kept"
        logger.warning("folder %d has %s: it becomes %s", number, had, made)
    return names


def _meta(store: Store, key: str) -> dict[str, Any]:
    try:
        meta = json.loads(store.read(key) or b"{}")
    except (ValueError, RecursionError) as error:
        logger.warning("%s is not JSON, and is not looked at: %s", key, error)
        return {}
    return meta if isinstance(meta, dict) else {}


def _config(store: Store, model: str) -> Any | None:
    """Return the model's configuration without name and versions; None where there is none that Triton could read."""
    text = store.read(f"{model}/{CONFIG_FILE}")
    if text is None or len(text) > MAX_SMALL_FILE:
        return None
    try:
        config = text_format.Parse(text.decode(), ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        logger.warning("%s/%s cannot be read, and another one is made: %s", model, CONFIG_FILE, error)
        return None
    config.ClearField("name")
    config.ClearField("version_policy")
    return config


def _generated(store: Store, key: str, target: Target) -> Any:
    """Return a configuration for a folder of a model that has none; the graph is copied to be looked at."""
    folder = store.workspace()
    try:
        if target == "onnx":
            with closing(store.open(f"{key}/model.onnx")) as source, (folder / "model.onnx").open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
        return model_config.generate(target, folder)
    except Refused as error:
        logger.warning("%s has a graph that cannot be read; Triton will say more: %s", key, error)
        return model_config.of_target(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
