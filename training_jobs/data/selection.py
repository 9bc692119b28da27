"""Choose, of what a source lists, the pictures of a snapshot; say of each other one why it was refused."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from jobkit import paths
from jobkit.errors import DataValidationError
from jobkit.snapshot import SPLITS, Refused, Sample, Split
from nightshift_common.options.data import NearCopyRule
from training_jobs.data.label_review import LabelReview
from training_jobs.data.listing import Listed
from training_jobs.data.near_duplicates import Groups, NearCopies
from training_jobs.data.picture_inspection import Inspected

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
    outdated_reviews: list[str]
    """Sentences about reviews that were not applied: the source has changed the label since."""
    split_groups: dict[str, str]
    """The name whose hash is the side, by picset or, for a single picture, by SHA-256; of the samples."""

    @property
    def near_copies(self) -> list[Refused]:
        """The pictures that were left out since another one is nearly the same."""
        return [r for r in self.refused if r.reason == "near_duplicate"]

    @property
    def relabeled(self) -> list[Sample]:
        """The pictures whose labels are those of a review."""
        return [s for s in self.samples if s.listed_as is not None]

    @property
    def bad(self) -> list[Refused]:
        """The refused pictures that something is wrong with."""
        return [r for r in self.refused if r.reason in BAD]


@dataclass(frozen=True)
class _Candidate:
    listed: Listed
    picture: Inspected
    labels: tuple[str, ...]
    """Its classes, sorted; none where the source says that it shows none of them."""
    unit: str
    """What the source keeps together: the picset, else the picture itself."""
    is_known: bool
    """Whether its unit stood in an earlier snapshot."""
    split: Split
    split_group: str
    listed_as: tuple[str, ...] | None = None
    """Its classes at the source, where a review has given it others."""

    @property
    def preference(self) -> tuple[int, str, str]:
        """Which of several copies stays: the one in training, so that no side ever scores a model on what it was
        trained on; then an order that does not depend on the listing's."""
        return SPLITS.index(self.split), self.picture.sha256, self.listed.source


def select(
    listed: Iterable[Listed],
    inspected: dict[str, Inspected],
    rules: Rules,
    near_copies: NearCopyRule = "group",
    earlier: Mapping[str, str] = MappingProxyType({}),
    multi_label: bool = False,
    reviews: Mapping[str, LabelReview] = MappingProxyType({}),
) -> Selection:
    """Choose pictures. The outcome does not depend on the order of `listed`.

    Args:
        listed: what the source lists; one file may be listed more than once.
        inspected: what is known of each file, by source.
        rules: sizes and shares.
        near_copies: what becomes of pictures of one label (of the same labels) that are nearly the same.
        earlier: the `split_groups` of earlier selections; what is in there stays on its side.
        multi_label: whether a picture has all labels that it is listed under, also none.
        reviews: what people decided, by SHA-256; it counts before what the source says.
    """
    refused: list[Refused] = []
    candidates: list[_Candidate] = []
    for entry in sorted(set(listed), key=lambda e: (e.source, e.label or "", e.split_group or "")):
        picture = inspected[entry.source]
        if problem := fault(picture, rules):
            refused.append(problem)
            continue
        unit = entry.split_group or picture.sha256
        name = earlier.get(unit, unit)
        labels = () if entry.label is None else (entry.label,)
        candidates.append(_Candidate(entry, picture, labels, unit, unit in earlier, rules.side(name), name))
    candidates.sort(key=lambda c: c.preference)
    if multi_label:
        candidates = _with_all_labels(candidates)
    candidates, outdated = _reviewed(candidates, reviews, refused)
    candidates = _without_conflicts(candidates, refused)
    divided: set[str] = set()
    if near_copies == "group":
        candidates, divided = _grouped(candidates, rules)
    candidates = _without_duplicates(candidates, refused)
    candidates = _without_copies_of_another_side(candidates, divided, refused)
    if near_copies == "drop":
        candidates = _without_near_copies(candidates, refused)
    return Selection(
        samples=[_sample(c, multi_label) for c in candidates if c.labels or multi_label],
        unlabeled=[c.picture for c in candidates if not (c.labels or multi_label)],
        refused=sorted(refused, key=lambda r: (r.source, r.reason)),
        outdated_reviews=outdated,
        split_groups={c.unit: c.split_group for c in candidates if c.labels or multi_label},
    )


def check_classes(samples: list[Sample], group: str) -> None:
    """Check that there are two classes or more, each on every side of the split.

    Raises:
        DataValidationError: the message lists the classes that fall short, with their counts.
    """
    counts = {split: Counter(label for s in samples if s.split == split for label in s.labels) for split in SPLITS}
    labels = sorted({label for s in samples for label in s.labels})
    if len(labels) < 2:
        found = f"only the class {labels[0]!r} ({len(samples)} pictures)" if labels else "no usable picture"
        raise DataValidationError(f"group {group} has {found}: a classifier needs at least two classes")
    groups = {label: len({s.split_group for s in samples if label in s.labels}) for label in labels}
    short = [
        f"{label!r} has {sum(counts[split][label] for split in SPLITS)} in {groups[label]} picsets or single pictures, "
        f"none in {' and '.join(split for split in SPLITS if not counts[split][label])}"
        for label in labels
        if not all(counts[split][label] for split in SPLITS)
    ]
    if short:
        raise DataValidationError(
            f"group {group} has classes with too few pictures to stand in {', '.join(SPLITS)}: {'; '.join(short)}. "
            "A picset stays on one side as a whole, and so do pictures of a class that are nearly the same: collect "
            "more picsets of these classes, or, where near copies are meant to be on every side, set near_copies to off"
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


def _with_all_labels(candidates: list[_Candidate]) -> list[_Candidate]:
    """Give every copy of a content the labels of all of them, and leave out further entries of one file.

    What is said to show none of the classes, and to show one, stays as it is: that is a conflict.
    """
    listed: dict[str, list[_Candidate]] = defaultdict(list)
    for candidate in candidates:
        listed[candidate.picture.sha256].append(candidate)
    kept: dict[tuple[str, bool], _Candidate] = {}
    for candidate in candidates:
        copies = listed[candidate.picture.sha256]
        labels = {label for copy in copies for label in copy.labels} if candidate.labels else set()
        changed = replace(candidate, labels=tuple(sorted(labels)))
        kept.setdefault((candidate.listed.source, bool(labels)), changed)
    return list(kept.values())


def _reviewed(
    candidates: list[_Candidate], reviews: Mapping[str, LabelReview], refused: list[Refused]
) -> tuple[list[_Candidate], list[str]]:
    """Apply what people decided; return also what was not applied, since the source says something else by now."""
    kept, outdated = [], []
    for candidate in candidates:
        review = reviews.get(candidate.picture.sha256)
        if review is None:
            kept.append(candidate)
        elif not review.holds_for(candidate.labels):
            kept.append(candidate)
            before, now = (", ".join(labels) or "none of the classes" for labels in (review.listed, candidate.labels))
            outdated.append(f"{candidate.listed.source}: {review.by} saw {before}, and the source says {now} since")
        elif review.verdict == "drop":
            refused.append(_refused(candidate, "dropped_in_review", f"by {review.by} on {review.at:%Y-%m-%d}"))
        elif candidate.labels == review.labels:
            kept.append(candidate)
        else:
            kept.append(replace(candidate, labels=review.labels, listed_as=candidate.labels))
    return kept, outdated


def _without_conflicts(candidates: list[_Candidate], refused: list[Refused]) -> list[_Candidate]:
    """Refuse every copy of a content that stands under two labels: no one knows which is right."""
    labels = defaultdict(set)
    for candidate in candidates:
        labels[candidate.picture.sha256].add(candidate.labels)
    kept = []
    for candidate in candidates:
        found = labels[candidate.picture.sha256]
        if len(found) > 1:
            names = sorted(", ".join(labels) or "none of the classes" for labels in found)
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
    """Keep one of pictures that are nearly the same: one of an earlier snapshot, before the one that is preferred."""
    ordered = sorted(candidates, key=lambda c: not c.is_known)
    dropped = set()
    for places in _by_label(ordered).values():
        for copy, original in NearCopies(_thumbnails([ordered[p] for p in places])).of_earlier().items():
            dropped.add(places[copy])
            detail = f"nearly the same as {ordered[places[original]].listed.source}"
            refused.append(_refused(ordered[places[copy]], "near_duplicate", detail))
    kept = [candidate for place, candidate in enumerate(ordered) if place not in dropped]
    return sorted(kept, key=lambda c: c.preference)


def _grouped(candidates: list[_Candidate], rules: Rules) -> tuple[list[_Candidate], set[str]]:
    """Return the candidates with near copies of one label, and all that stands in picsets with them, on one side.

    What stood in an earlier snapshot stays where it is, and what is new goes there. Where new pictures join groups of
    several sides, those sides stay, too; the units of such groups are returned as well.
    """
    names: dict[str, str] = {}
    divided: set[str] = set()
    for group in _near_groups(candidates):
        if len({c.split for c in group if c.is_known}) > 1:
            names |= _names_between([c for c in group if not c.is_known], [c for c in group if c.is_known])
            divided |= {c.unit for c in group}
        else:
            names |= _names(group)
    moved = [
        replace(c, split_group=name, split=rules.side(name))
        for c in candidates
        for name in [names.get(c.unit, c.split_group)]
    ]
    return sorted(moved, key=lambda c: c.preference), divided


def _near_groups(candidates: list[_Candidate]) -> list[list[_Candidate]]:
    """Return the candidates that are held together by near copies of one label, or by picsets."""
    joined, units = Groups(len(candidates)), defaultdict(list)
    for place, candidate in enumerate(candidates):
        units[candidate.unit].append(place)
    for places in units.values():
        joined.join(places)
    for places in _by_label(candidates).values():
        for near in NearCopies(_thumbnails([candidates[p] for p in places])).groups():
            joined.join([places[n] for n in near])
    return [[candidates[place] for place in group] for group in joined.listed()]


def _names(group: list[_Candidate]) -> dict[str, str]:
    """Return the name in the split of each new unit of a group: that of what is known, else of its first unit."""
    known = min((c.split_group for c in group if c.is_known), default=None)
    name = min(c.unit for c in group) if known is None else known
    return {c.unit: name for c in group if not c.is_known}


def _names_between(new: list[_Candidate], known: list[_Candidate]) -> dict[str, str]:
    """Return the name in the split of each new unit of a group that has known pictures on several sides.

    New pictures that are near each other go to one side: that of a known one that they are near, to training before
    validation before the golden set. One that is itself near several sides holds nothing together: it will be left out.
    """
    on_sides = [_first_near(new, [k for k in known if k.split == split]) for split in SPLITS]
    near = {c: [hit for hit in hits if hit is not None] for c, *hits in zip(new, *on_sides, strict=True)}
    names: dict[str, str] = {}
    for part in _near_groups([c for c in new if len(near[c]) < 2]):
        best = min((hit for c in part for hit in near[c]), key=lambda hit: hit.preference, default=None)
        names |= _names(part) if best is None else dict.fromkeys((c.unit for c in part), best.split_group)
    return names


def _without_copies_of_another_side(
    candidates: list[_Candidate], divided: set[str], refused: list[Refused]
) -> list[_Candidate]:
    """Leave out what is nearly the same as a picture of another side: what is new before what is known, and of those
    the golden set's before validation's before training's."""
    kept: list[_Candidate] = []
    for is_known in (True, False):
        for split in SPLITS:
            here = [c for c in candidates if c.unit in divided and (c.is_known, c.split) == (is_known, split)]
            for candidate, hit in zip(here, _first_near(here, [k for k in kept if k.split != split]), strict=True):
                if hit is None:
                    kept.append(candidate)
                else:
                    detail = f"nearly the same as {hit.listed.source} ({hit.split}), and would stand in {split}"
                    refused.append(_refused(candidate, "near_duplicate", detail))
    return sorted([*kept, *(c for c in candidates if c.unit not in divided)], key=lambda c: c.preference)


def _first_near(queries: list[_Candidate], references: list[_Candidate]) -> list[_Candidate | None]:
    """Return for each query a reference of its label that it is a near copy of.

    The one that the query before was near is tried first, so that a crowd takes few comparisons.
    """
    import numpy as np

    found: list[_Candidate | None] = [None] * len(queries)
    if not queries or not references:
        return found
    search = NearCopies(_thumbnails([*references, *queries]))
    labeled = {label: np.array(places) for label, places in _by_label(references).items()}
    last: dict[tuple[str, ...], int] = {}
    for place, query in enumerate(queries):
        label, number = query.labels, len(references) + place
        if label not in labeled:
            continue
        if label not in last or not search.near(number, np.array([last[label]])).any():
            hits = labeled[label][search.near(number, labeled[label])]
            if not hits.size:
                continue
            last[label] = int(hits[0])
        found[place] = references[last[label]]
    return found


def _by_label(candidates: list[_Candidate]) -> dict[tuple[str, ...], list[int]]:
    """Return the places of the candidates of each label, or of the same labels."""
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, candidate in enumerate(candidates):
        places[candidate.labels].append(place)
    return places


def _thumbnails(candidates: list[_Candidate]) -> NDArray[np.uint8]:
    """Return the thumbnails of candidates: uint8 [N, 256]."""
    import numpy as np

    return np.stack([c.picture.thumbnail_array() for c in candidates])


def _refused(candidate: _Candidate, reason: str, detail: str) -> Refused:
    return Refused.model_validate(
        {"source": candidate.listed.source, "reason": reason, "detail": detail, "sha256": candidate.picture.sha256}
    )


def _sample(candidate: _Candidate, multi_label: bool) -> Sample:
    picture = candidate.picture
    return Sample(
        sha256=picture.sha256,
        path=paths.picture(picture.sha256, picture.suffix),
        label="" if multi_label else candidate.labels[0],
        several=candidate.labels if multi_label else None,
        split=candidate.split,
        width=picture.width,
        height=picture.height,
        split_group=candidate.split_group,
        source=candidate.listed.source,
        listed_as=candidate.listed_as,
    )
