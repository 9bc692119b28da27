"""Choose, of what a source lists, the pictures of a snapshot; say of each other one why it was refused."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from jobkit import paths
from jobkit.errors import DataValidationError
from jobkit.snapshot import SPLITS, Refused, Sample, Split
from training_jobs.data.listing import Listed
from training_jobs.data.near_duplicates import near_copies
from training_jobs.data.picture_inspection import Inspected

# What is wrong with a picture, as against a copy, which is only superfluous.
BAD = ("corrupt", "unsupported", "missing", "too_small", "too_large", "conflicting_labels")


@dataclass(frozen=True)
class Rules:
    """Bounds of a picture's sides in pixels, and the shares of the split."""

    min_side: int
    max_side: int
    val_part: float
    golden_part: float

    def side(self, split_group: str) -> Split:
        """Return the side of a split group: a function of its name alone, so that it never changes as the set grows."""
        number = int.from_bytes(hashlib.sha256(split_group.encode()).digest()[:8]) / 2**64  # uniform in 0..1
        if number < self.golden_part:
            return "golden"
        return "val" if number < self.golden_part + self.val_part else "train"


@dataclass(frozen=True)
class Selection:
    """The pictures of a snapshot, those that show none of its classes, and the refused ones."""

    samples: list[Sample]
    unlabeled: list[Inspected]
    refused: list[Refused]

    @property
    def bad(self) -> list[Refused]:
        """The refused pictures that something is wrong with."""
        return [r for r in self.refused if r.reason in BAD]


@dataclass(frozen=True)
class _Candidate:
    listed: Listed
    picture: Inspected
    split: Split
    split_group: str

    @property
    def preference(self) -> tuple[int, str, str]:
        """Which of several copies stays: the one in training, so that no side ever scores a model on what it was
        trained on; then an order that does not depend on the listing's."""
        return SPLITS.index(self.split), self.picture.sha256, self.listed.source


def select(listed: Iterable[Listed], inspected: dict[str, Inspected], rules: Rules) -> Selection:
    """Choose pictures. The outcome does not depend on the order of `listed`.

    Args:
        listed: what the source lists; one file may be listed more than once.
        inspected: what is known of each file, by source.
        rules: sizes and shares.
    """
    refused: list[Refused] = []
    candidates: list[_Candidate] = []
    for entry in sorted(set(listed), key=lambda e: (e.source, e.label or "", e.split_group or "")):
        picture = inspected[entry.source]
        if problem := fault(picture, rules):
            refused.append(problem)
            continue
        split_group = entry.split_group or picture.sha256
        candidates.append(_Candidate(entry, picture, rules.side(split_group), split_group))
    candidates.sort(key=lambda c: c.preference)
    candidates = _without_conflicts(candidates, refused)
    candidates = _without_duplicates(candidates, refused)
    candidates = _without_near_copies(candidates, refused)
    return Selection(
        samples=[_sample(c) for c in candidates if c.listed.label is not None],
        unlabeled=[c.picture for c in candidates if c.listed.label is None],
        refused=sorted(refused, key=lambda r: (r.source, r.reason)),
    )


def check_classes(samples: list[Sample], group: str) -> None:
    """Check that there are two classes or more, each on every side of the split.

    Raises:
        DataValidationError: the message lists the classes that fall short, with their counts.
    """
    counts = {split: Counter(s.label for s in samples if s.split == split) for split in SPLITS}
    labels = sorted({s.label for s in samples})
    if len(labels) < 2:
        found = f"only the class {labels[0]!r} ({len(samples)} pictures)" if labels else "no usable picture"
        raise DataValidationError(f"group {group} has {found}: a classifier needs at least two classes")
    groups = {label: len({s.split_group for s in samples if s.label == label}) for label in labels}
    short = [
        f"{label!r} has {sum(counts[split][label] for split in SPLITS)} in {groups[label]} picsets or single pictures, "
        f"none in {' and '.join(split for split in SPLITS if not counts[split][label])}"
        for label in labels
        if not all(counts[split][label] for split in SPLITS)
    ]
    if short:
        raise DataValidationError(
            f"group {group} has classes with too few pictures to stand in {', '.join(SPLITS)}: {'; '.join(short)}. "
            "A picset stays on one side as a whole: collect more picsets of these classes"
        )


def fault(picture: Inspected, rules: Rules) -> Refused | None:
    """Return what is wrong with a picture by itself, if anything is."""
    size = f"{picture.width}x{picture.height} pixels"
    known = {"source": picture.source, "sha256": picture.sha256 or None}
    if picture.fault:
        return Refused(reason=picture.fault, detail=picture.detail, **known)
    if max(picture.width, picture.height) > rules.max_side:
        return Refused(reason="too_large", detail=f"{size}, at most {rules.max_side} a side", **known)
    if min(picture.width, picture.height) < rules.min_side:
        return Refused(reason="too_small", detail=f"{size}, at least {rules.min_side} a side", **known)
    return None


def _without_conflicts(candidates: list[_Candidate], refused: list[Refused]) -> list[_Candidate]:
    """Refuse every copy of a content that stands under two labels: no one knows which is right."""
    labels = defaultdict(set)
    for candidate in candidates:
        labels[candidate.picture.sha256].add(candidate.listed.label)
    kept = []
    for candidate in candidates:
        found = labels[candidate.picture.sha256]
        if len(found) > 1:
            names = sorted(label or "none of the classes" for label in found)
            detail = f"the same picture is labeled {' and '.join(names)}"
            refused.append(_refused(candidate, "conflicting_labels", detail))
        else:
            kept.append(candidate)
    return kept


def _without_duplicates(candidates: list[_Candidate], refused: list[Refused]) -> list[_Candidate]:
    kept: dict[str, _Candidate] = {}
    for candidate in candidates:
        first = kept.setdefault(candidate.picture.sha256, candidate)
        if first is not candidate:
            refused.append(_refused(candidate, "duplicate", f"the same file as {first.listed.source} ({first.split})"))
    return list(kept.values())


def _without_near_copies(candidates: list[_Candidate], refused: list[Refused]) -> list[_Candidate]:
    import numpy as np

    if not candidates:
        return []
    copies = near_copies(np.stack([c.picture.thumbnail_array() for c in candidates]))
    for index, original in copies.items():
        first = candidates[original].listed
        note = "" if first.label == candidates[index].listed.label else f", which is labeled {first.label or 'none'!r}"
        refused.append(_refused(candidates[index], "near_duplicate", f"nearly the same as {first.source}{note}"))
    return [candidate for index, candidate in enumerate(candidates) if index not in copies]


def _refused(candidate: _Candidate, reason: str, detail: str) -> Refused:
    return Refused.model_validate(
        {"source": candidate.listed.source, "reason": reason, "detail": detail, "sha256": candidate.picture.sha256}
    )


def _sample(candidate: _Candidate) -> Sample:
    picture = candidate.picture
    return Sample(
        sha256=picture.sha256,
        path=paths.picture(picture.sha256, picture.suffix),
        label=candidate.listed.label or "",
        split=candidate.split,
        width=picture.width,
        height=picture.height,
        split_group=candidate.split_group,
        source=candidate.listed.source,
    )
