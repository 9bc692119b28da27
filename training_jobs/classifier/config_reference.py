"""The reference of the configuration file, made from the models that check it: `docs/classifier.md` and `--help`.

`python -m training_jobs.classifier.config_reference` writes the page anew.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from jobkit.files import write_atomic
from training_jobs.classifier.config import Config
from training_jobs.classifier.transforms import AnyAugmentation, PostTransform

PAGE = Path(__file__).resolve().parents[2] / "docs" / "classifier.md"
SCHEMA = PAGE.parents[1] / "nightshift_common" / "options" / "classifier_config.schema.json"
HEAD = """# The classifier's configuration file

`python -m training_jobs.train_classifier --config_filename FILE` trains by such a file; `--epochs` and `--batch`
override two of its keys. Every key has a default; an unknown or repeated key is an error that names its line. This page
is made from the code that checks the files: `python -m training_jobs.classifier.config_reference`.

Without `--config_filename` the file is `configs/classifier/<group>.yaml`, or `default.yaml` where there is none of that
name.

Labels come from a snapshot (`--cat GROUP --snapshot_id ID`; the id may be left out where the group has one snapshot),
from folders (`directories.images/<class>/…`), or from `rotation`: upright pages are turned by 0, 90, 180 or 270 degrees
counter-clockwise, and the turn is the class (drawn in training, all four of every page in validation).

A training leaves `models/<group>/v__{n}_{mode}_{backbone}_{batch}_{weight decay}/` in the bottle, with `mode` `train`
or `finetune`: `checkpoints/` (`best.ckpt`: weights; `last.ckpt`: what a killed training goes on from), `torchscripts/`,
`csv_logs/`, `train_batches/` (the first batches as the model saw them), `report.html`, `model.json` (classes and
preprocessing, which every later step follows), `config.yaml` (as run) and `metrics.json`. Under Airflow a retry finds
its folder by itself; by hand `--resume models/<group>/v__…` goes on with one. A resumed training ends with exactly the
weights of one that was never interrupted (on a CPU bit by bit).

With `--gpus 2` as many processes train together, each on a GPU of this machine (or on its part of the cores, where
there is none). They share each batch in equal parts, so that steps, learning rates and scores are those of one GPU;
only mixup and cutmix mix within a part, and layers that draw random numbers draw others. It goes on from a checkpoint
of any number of GPUs.

What `inference` asks for is part of the graph that is handed over, in TorchScript and in ONNX: evaluation, the gate and
Triton see the same numbers, and a client does nothing about it. `model.json` and `meta.json` say what it is:
`flip_tta`, and under `calibration` the temperature, with the negative log-likelihood and the expected calibration error
(ECE, 15 bins; Guo et al. 2017) of the validation pictures before and after. The output stays `logits`; their softmax is
the calibrated confidence. The temperature stays 1, with the reason in `model.json` and a warning, where there are fewer
than 100 validation pictures and where the best one lies outside 0.05 to 20: if all of them are right, every lower one
is better. Scores in `metrics.json` are those of what is handed over; those of each epoch are averaged, not calibrated.
`--flip_tta` and `--temperature_scaling` of the job, and `train.flip_tta` and `train.temperature_scaling` of a pipeline
file, win over this file; `border` of `pad_if_needed` is in this file alone.

A snapshot that was pulled with `multi_label` has pictures with several labels, or none, and is trained with
`criterion.type: binary_cross_entropy` (any other pairing is refused, exit code 2): a class by itself, its target moved
by `label_smoothing`, its yes weighed by `class_weights`. The graph gives `probabilities`, the sigmoid of each logit (of
the mean over mirror images, with `flip_tta`), `model.json` says `multi_label: true`, and a picture shows a class from
0.5 on. `val_macro_f1` counts by that, `val_accuracy` the pictures whose labels are all right, and `metrics.json` has
`val_map`, the mean of the classes' average precision.

`--check` builds the model, trains and validates a few batches, and says what all of it will take; it writes nothing and
ends as the training would (2: the configuration, 3: the pictures). `--find_learning_rate` trains a hundred steps with
growing rates and suggests one (Smith 2017). [tuning.md](tuning.md) searches for values of any keys.

## Published weights

`model.pretrained: true` starts from timm's published weights and never asks the network. The first of these is taken:
`<name>.safetensors` or `.pth` in `directories.models`; in `weights/` of the bottle; in the cache of the hub's client or
of torch. `python -m conversion_jobs.fetch_weights --name efficientnet_b0.ra_in1k` puts them into the bottle (`--source`
names a file, a zip or an address in the place of the hub's; `HF_ENDPOINT` another hub), with a record of source,
license and SHA-256, by which every training checks them. All three go into `model.json`, MLflow's tags, the report and
the package's `sbom.cdx.json`; a license that nobody states is `unknown`, and nothing is refused because of one.

## Keys

"""


class Key(NamedTuple):
    """One key: its dotted name, type, bounds, default and meaning."""

    name: str
    type: str
    bounds: str
    default: str
    meaning: str


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Yield the keys of a section and of those below it."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys(inner, f"{prefix}{name}.")
        else:
            yield Key(prefix + name, _type(inner), _bounds(field), _default(field), field.description or "")


def page() -> str:
    """Return `docs/classifier.md`."""
    parts = [HEAD, _table(keys(Config)), "\n## Transforms\n\n"]
    parts.append(
        "Each is an entry `- type: <name>` with its parameters. `pre_transforms` and `post_transforms` bring a\n"
        "picture to the model's input; validation, evaluation and serving do exactly the same.\n"
    )
    parts += [_transform(member) for member in _members(PostTransform)]
    parts.append(
        "\nThe others stand in `train_augmentations` and `val_augmentations`. All have `p`, the probability of\n"
        "applying them to a picture (default 0.5).\n"
    )
    parts += [_transform(member) for member in _members(AnyAugmentation)]
    return "".join(parts)


def text() -> str:
    """Return the keys as plain lines, for `--help`."""
    lines = []
    for key in keys(Config):
        bounds = f", {key.bounds}" if key.bounds else ""
        lines.append(f"  {key.name}: {key.type}{bounds}; default {key.default}. {key.meaning}")
    names = ", ".join(name for member in _members(AnyAugmentation) for name in _names(member))
    return "\n".join([*lines, f"  augmentations: {names}"])


def _transform(member: type[BaseModel]) -> str:
    parameters = [key for key in keys(member) if key.name not in ("type", "p")]
    names = " or ".join(f"`{name}`" for name in _names(member))
    summary = (member.__doc__ or "").strip().splitlines()[0]
    return f"\n### {names}\n\n{summary}\n" + (f"\n{_table(iter(parameters))}" if parameters else "")


def _table(rows: Iterator[Key]) -> str:
    lines = ["| key | type | bounds | default | meaning |", "|---|---|---|---|---|"]
    for key in rows:
        kind = key.type.replace("|", "\\|")
        lines.append(f"| `{key.name}` | {kind} | {key.bounds} | {key.default} | {key.meaning} |")
    return "\n".join(lines) + "\n"


def _members(union: Any) -> tuple[type[BaseModel], ...]:
    members: tuple[type[BaseModel], ...] = get_args(get_args(union)[0])
    return members


def _names(member: type[BaseModel]) -> tuple[str, ...]:
    return get_args(member.model_fields["type"].annotation)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return "transform" if isinstance(arguments[0], types.UnionType) else _type(arguments[0])
    if origin is Literal:
        return " | ".join(json.dumps(value) if isinstance(value, int) else str(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(_type(argument) for argument in arguments if argument is not type(None))
    if origin is dict:
        return "mapping"
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(_type(argument) for argument in arguments)}]"
    return {"str": "text", "bool": "true | false", "int": "integer", "float": "number"}.get(annotation.__name__, "?")


def _bounds(field: FieldInfo) -> str:
    signs = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}
    found = []
    for limit in field.metadata:
        for kind, (attribute, sign) in signs.items():
            value = getattr(limit, attribute, None) if isinstance(limit, kind | Interval) else None
            if value is not None:
                found.append(f"{sign} {value:g}" if value < 1e6 else f"{sign} {value}")
    return ", ".join(found)


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined or field.default is None:
        return "none"
    if isinstance(field.default, list):
        return ", ".join(item.type for item in field.default) or "[]"
    return json.dumps(field.default) if not isinstance(field.default, str) else field.default


def schema() -> str:
    """Return the keys as JSON Schema, with timm's architectures, for who checks a file without these packages."""
    import timm

    content = Config.model_json_schema()
    content["architectures"] = sorted(timm.list_models())
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    write_atomic(PAGE, page())
    write_atomic(SCHEMA, schema())
