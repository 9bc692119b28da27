"""Make a snapshot of a group's annotated pictures: read a COCO file, refuse what is wrong, split the rest for good."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, Field

from jobkit import job, paths
from jobkit.bottle import Bottle, open_bottle
from jobkit.errors import DataValidationError
from jobkit.paths import SnapshotPaths
from jobkit.snapshot import SPLITS, AnnotatedObject, Refused, Sample, Summary, write_snapshot
from nightshift_common.options.data import AnnotatedPicturesOptions
from training_jobs.data import pull
from training_jobs.data.coco import AnnotatedPicture, Annotations, inside, read_annotations
from training_jobs.data.picture_inspection import Inspected
from training_jobs.data.selection import BAD, Rules, fault
from training_jobs.data.sources import read_from_bottle, read_local
from training_jobs.data.transfer import Fetch, NotThere, transfer

logger = logging.getLogger("training_jobs.pull_annotations")

BAD_PICTURE = (*BAD, "malformed", "duplicate_id", "other_size", "no_usable_object")


class Arguments(pull.PullArguments, AnnotatedPicturesOptions):
    """Make a snapshot of annotated pictures. Only new ones are transferred; the same data gives the same snapshot."""


class Result(pull.Result):
    """The snapshot, and what it took to make it; what only a pull knows is not there for a pinned snapshot."""

    background: int | None = Field(None, description="pictures without an object")
    clipped: int | None = Field(None, description="objects that reached beyond their picture and were cut off there")


class Selection(BaseModel):
    """The pictures of a snapshot, and what was refused."""

    samples: list[Sample]
    refused_pictures: list[Refused]
    refused_objects: list[Refused]
    clipped: int


def run(arguments: Arguments, context: job.Context) -> Result:
    """Pull annotated pictures."""
    if (found := pull.pinned(arguments, arguments.group, context)) is not None:
        return Result(**dict(found))
    bottle, group = context.bottle, arguments.group
    annotations, images = (
        read_annotations(_read(arguments.annotations, bottle), arguments.annotations),
        _images(arguments),
    )
    logger.info(
        "%s lists %d objects in %d pictures",
        arguments.annotations,
        annotations.listed_objects,
        annotations.listed_pictures,
    )
    sources = [f"{images}/{picture.name}" for picture in annotations.pictures]
    inspected, transferred = transfer(bottle, group, sources, _fetch(images, bottle), arguments.max_side)
    rules = Rules(arguments.min_side, arguments.max_side, arguments.val_part, arguments.golden_part)
    selection = select(
        annotations, {p.name: inspected[s] for p, s in zip(annotations.pictures, sources, strict=True)}, rules
    )
    summary, is_new, sentence = _write(arguments, bottle, annotations, selection)
    background = sum(not sample.objects for sample in selection.samples)
    logger.info(
        "snapshot %s %s: %d pictures, %d of them without objects, %d objects clipped, refused: %s; %d files fetched",
        summary.snapshot_id, "is new" if is_new else "is there already", summary.pictures, background,
        selection.clipped, summary.refused or "nothing", transferred,
    )  # fmt: skip
    sides = Counter(f"pictures/{sample.split}" for sample in selection.samples)
    sides.update({f"objects/{split}": sum(labels.values()) for split, labels in summary.counts.items()})
    metrics = {name: float(value) for name, value in sides.items()}
    metrics |= {"background": float(background), "clipped": float(selection.clipped)}
    result = pull.finish(arguments, context, summary, transferred, is_new, metrics, sentence)
    return Result(**dict(result), background=background, clipped=selection.clipped)


def _write(
    arguments: Arguments, bottle: Bottle, annotations: Annotations, selection: Selection
) -> tuple[Summary, bool, str]:
    """Write quarantine and snapshot; return its summary, whether it is new, and what was left out."""
    group, refused = arguments.group, [*selection.refused_pictures, *selection.refused_objects]
    key = pull.write_quarantine(bottle, group, refused)
    bad = [r for r in selection.refused_pictures if r.reason in BAD_PICTURE]
    share = arguments.max_bad_share
    pull.check_share(bottle, key, group, bad, annotations.listed_pictures, "pictures", share)
    pull.check_share(bottle, key, group, selection.refused_objects, annotations.listed_objects, "objects", share)
    check_sides(selection.samples, group)
    existing = set(bottle.keys(f"snapshots/{group}"))
    summary = write_snapshot(bottle, group, selection.samples, refused)
    listed = annotations.listed_pictures + annotations.listed_objects
    sentence = pull.left_out(key, refused, listed, "pictures and objects", [*bad, *selection.refused_objects])
    return summary, SnapshotPaths(group, summary.snapshot_id).summary not in existing, sentence


def _images(arguments: Arguments) -> str:
    """Return the folder of the pictures, in the form that `annotations` has."""
    given = arguments.images
    return (
        given.rstrip("/")
        if given is not None
        else str(PurePosixPath(arguments.annotations).parent).replace("s3:/", "s3://", 1)
    )


def _fetch(images: str, bottle: Bottle) -> Fetch:
    """Return what reads a picture below `images`."""
    if images.startswith("s3://"):
        root, _, _ = images.removeprefix("s3://").partition("/")
        store = open_bottle(f"s3://{root}")
        return lambda source: read_from_bottle(store, source.removeprefix(f"s3://{root}/"))
    if images.startswith("/"):
        return lambda source: read_local(Path(source))
    return lambda source: read_from_bottle(bottle, source.removeprefix("./"))


def _read(annotations: str, bottle: Bottle) -> bytes:
    """Return the file of annotations.

    Raises:
        DataValidationError: it is not there.
    """
    try:
        return _fetch(annotations, bottle)(annotations)
    except NotThere as error:
        raise DataValidationError(f"the annotations are not there: {error}") from error


def select(annotations: Annotations, inspected: dict[str, Inspected], rules: Rules) -> Selection:
    """Choose pictures and objects. The outcome does not depend on the order in which they are listed.

    Copies of a file stand on one side, since they are one picture. A picture of which every object is refused is
    refused too: it would be taken for a background.

    Args:
        annotations: what the file lists.
        inspected: what is known of each file, by its name there.
        rules: sizes and shares.
    """
    refused, refused_objects = list(annotations.refused_pictures), list(annotations.refused_objects)
    lost = {r.source.rpartition("#")[0] for r in refused_objects}
    samples: dict[str, list[Sample]] = defaultdict(list)
    clipped = 0
    for picture in sorted(annotations.pictures, key=lambda p: p.name):
        known = inspected[picture.name]
        if problem := fault(known, rules) or _other_size(picture, known):
            refused.append(problem)
            continue
        objects, cut = [], 0
        for name, listed in picture.objects:
            part = inside(listed, (known.width, known.height))
            if part is None:
                refused_objects.append(_without_area(name, listed, known))
                lost.add(picture.name)
            else:
                objects.append(part)
                cut += part != listed
        if not objects and picture.name in lost:
            detail = "all of its objects were refused, so it would be taken for a picture without objects"
            refused.append(_refused(known, "no_usable_object", detail))
            continue
        clipped += cut
        samples[known.sha256].append(_sample(known, objects, rules))
    kept = []
    for copies in samples.values():
        if len({tuple(sorted(o.model_dump_json() for o in s.objects or ())) for s in copies}) > 1:
            names = " and ".join(s.source for s in copies)
            refused += [_of(s, "conflicting_labels", f"{names} are one picture with other objects") for s in copies]
            continue
        kept.append(copies[0])
        refused += [_of(s, "duplicate", f"the same file as {copies[0].source}") for s in copies[1:]]
    return Selection(
        samples=kept,
        refused_pictures=sorted(refused, key=lambda r: (r.source, r.reason)),
        refused_objects=sorted(refused_objects, key=lambda r: (r.source, r.reason)),
        clipped=clipped,
    )


def _sample(picture: Inspected, objects: list[AnnotatedObject], rules: Rules) -> Sample:
    return Sample(
        sha256=picture.sha256, path=paths.picture(picture.sha256, picture.suffix), label="",
        split=rules.side(picture.sha256), width=picture.width, height=picture.height, split_group=picture.sha256,
        source=picture.source, objects=tuple(objects),
    )  # fmt: skip


def _other_size(picture: AnnotatedPicture, known: Inspected) -> Refused | None:
    """Refuse a picture that has another size than the one that its boxes were drawn in."""
    if picture.size is None or picture.size == (known.width, known.height):
        return None
    turned = picture.size == (known.height, known.width)
    detail = (
        f"its annotations are for {picture.size[0]}x{picture.size[1]} pixels, it has {known.width}x{known.height}"
        f"{' once it is turned as its EXIF orientation says' if turned else ''}"
    )
    return _refused(known, "other_size", detail)


def _without_area(name: str, listed: AnnotatedObject, known: Inspected) -> Refused:
    shown = ", ".join(f"{value:g}" for value in listed.box)
    detail = f"nothing of its box [{shown}] lies in the {known.width}x{known.height} pixels of the picture"
    return Refused(source=name, reason="zero_area", detail=detail, sha256=known.sha256)


def _refused(picture: Inspected, reason: str, detail: str) -> Refused:
    return Refused.model_validate(
        {"source": picture.source, "reason": reason, "detail": detail, "sha256": picture.sha256}
    )


def _of(sample: Sample, reason: str, detail: str) -> Refused:
    return Refused.model_validate(
        {"source": sample.source, "reason": reason, "detail": detail, "sha256": sample.sha256}
    )


def check_sides(samples: list[Sample], group: str) -> None:
    """Check that there are objects on every side of the split, and of every class in training.

    Raises:
        DataValidationError: there are not; the message has the counts. A class that lacks in validation or in the
            golden set is told by a warning: nothing vouches for what a model makes of it.
    """
    counts = {split: Counter[str]() for split in SPLITS}
    for sample in samples:
        counts[sample.split].update(o.label for o in sample.objects or () if not o.ignore)
    labels = sorted(set().union(*counts.values()))
    empty = [split for split in SPLITS if not counts[split]]
    if empty:
        found = ", ".join(f"{counts[split].total()} in {split}" for split in SPLITS)
        raise DataValidationError(
            f"group {group} has no objects in {' and '.join(empty)} ({found}; {len(samples)} pictures): annotate more "
            "pictures, or set other parts for validation and the golden set"
        )
    if unlearned := [label for label in labels if not counts["train"][label]]:
        shown = ", ".join(f"{label!r} ({sum(counts[s][label] for s in SPLITS)} objects)" for label in unlearned)
        raise DataValidationError(
            f"group {group} has classes without an object in train: {shown}: annotate more pictures"
        )
    for split in ("val", "golden"):
        if missing := [label for label in labels if not counts[split][label]]:
            logger.warning("no object of %s in %s: no score says how well it is found", ", ".join(missing), split)


if __name__ == "__main__":
    job.main(Arguments, run)
