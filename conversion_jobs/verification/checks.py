"""How far a converted model may be from its source: each threshold is an object that gives a verdict and a sentence.

Sources of the limits: FP32 graphs against PyTorch atol 1e-4, rtol 1e-3 (what exporters' own tests use); cosine 0.997
and top-1 agreement 99 % for FP16 plans are what practitioners converge on, so FP32 graphs are held to more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nightshift_common.picture_preparation import SHOWN

Array = NDArray[np.float32]


class Verdict(BaseModel):
    """What a check found."""

    model_config = ConfigDict(extra="forbid")

    name: str
    passed: bool
    value: float
    limit: float
    sentence: str
    worst_picture: str | None = None


class Check(Protocol):
    """A threshold."""

    def judge(self, source: Array, converted: Array, pictures: Sequence[str]) -> Verdict:
        """Compare outputs float32 [n, ...] of the source and of the converted model for the same n pictures."""


@dataclass(frozen=True)
class Finite:
    """No NaN and no infinity in the converted model's outputs."""

    def judge(self, source: Array, converted: Array, pictures: Sequence[str]) -> Verdict:
        """Count the pictures with a value that is not finite."""
        bad = ~np.isfinite(converted).reshape(len(converted), -1).all(axis=1)
        count = int(bad.sum())
        worst = pictures[int(bad.argmax())] if count else None
        sentence = f"NaN or infinity in the outputs of {count} of {len(converted)} pictures" if count else "all finite"
        return Verdict(name="finite", passed=count == 0, value=count, limit=0, sentence=sentence, worst_picture=worst)


@dataclass(frozen=True)
class Close:
    """`|converted - source| <= atol + rtol * |source|` for every value, as in NumPy's `allclose`."""

    atol: float
    rtol: float

    def judge(self, source: Array, converted: Array, pictures: Sequence[str]) -> Verdict:
        """Report the largest share of the tolerance that a value uses up; 1 is the limit."""
        difference = np.abs(converted.astype(np.float64) - source)
        used = (difference / (self.atol + self.rtol * np.abs(source))).reshape(len(source), -1)
        used = np.where(np.isfinite(used), used, np.inf)
        per_picture = used.max(axis=1)
        worst = int(per_picture.argmax())
        value = float(per_picture[worst])
        share = int((per_picture > 1).sum())
        sentence = (
            f"the largest difference is {difference.max():.2e}, {value:.2g} of what atol {self.atol:g} and rtol "
            f"{self.rtol:g} allow; {share} of {len(source)} pictures are beyond it"
        )
        return Verdict(
            name="close", passed=value <= 1, value=value, limit=1, sentence=sentence, worst_picture=pictures[worst]
        )


@dataclass(frozen=True)
class Cosine:
    """The cosine between source and converted outputs of each picture, at least `minimum`."""

    minimum: float

    def judge(self, source: Array, converted: Array, pictures: Sequence[str]) -> Verdict:
        """Report the lowest cosine."""
        a = source.reshape(len(source), -1).astype(np.float64)
        b = converted.reshape(len(source), -1).astype(np.float64)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        same = (a == b).all(axis=1)  # two zero vectors have no angle, but are equal
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = np.where(same, 1.0, (a * b).sum(axis=1) / norms)
        cosine = np.where(np.isfinite(cosine), cosine, -1.0)
        worst = int(cosine.argmin())
        value = float(cosine[worst])
        sentence = f"the lowest cosine of a picture's outputs is {value:.6f}, at least {self.minimum:g} is asked"
        return Verdict(
            name="cosine", passed=value >= self.minimum, value=value, limit=self.minimum, sentence=sentence,
            worst_picture=pictures[worst],
        )  # fmt: skip


@dataclass(frozen=True)
class Top1Agreement:
    """The share of pictures for which both models rank the same class first, at least `minimum`."""

    minimum: float

    def judge(self, source: Array, converted: Array, pictures: Sequence[str]) -> Verdict:
        """Report the share; outputs are [n, classes]."""
        agrees = source.argmax(axis=1) == converted.argmax(axis=1)
        value = float(agrees.mean())
        worst = None if agrees.all() else pictures[int(agrees.argmin())]
        sentence = f"the first class is the same for {agrees.sum()} of {len(agrees)} pictures ({value:.1%})"
        return Verdict(
            name="top1_agreement", passed=value >= self.minimum, value=value, limit=self.minimum, sentence=sentence,
            worst_picture=worst,
        )  # fmt: skip


@dataclass(frozen=True)
class LabelAgreement:
    """The share of pictures that show the same classes to both models, at least `minimum`; of several labels."""

    minimum: float

    def judge(self, source: Array, converted: Array, pictures: Sequence[str]) -> Verdict:
        """Report the share; outputs are probabilities [n, classes], and a class is shown from `SHOWN` on."""
        agrees = ((source >= SHOWN) == (converted >= SHOWN)).all(axis=1)
        value = float(agrees.mean())
        worst = None if agrees.all() else pictures[int(agrees.argmin())]
        sentence = f"the classes shown are the same for {agrees.sum()} of {len(agrees)} pictures ({value:.1%})"
        return Verdict(
            name="label_agreement", passed=value >= self.minimum, value=value, limit=self.minimum, sentence=sentence,
            worst_picture=worst,
        )  # fmt: skip


def judge_all(checks: Sequence[Check], source: Array, converted: Array, pictures: Sequence[str]) -> list[Verdict]:
    """Return the verdicts of all checks."""
    if source.shape != converted.shape:
        sentence = f"the outputs have the shape {list(converted.shape)}, the source's {list(source.shape)}"
        return [Verdict(name="shape", passed=False, value=0, limit=1, sentence=sentence)]
    return [check.judge(source, converted, pictures) for check in checks]


def worst_verdicts(by_batch: dict[int, list[Verdict]]) -> list[Verdict]:
    """Return for each check its verdict at the batch size where it is worst; the sentence names the size."""
    worst: dict[str, Verdict] = {}
    for size, verdicts in by_batch.items():
        for verdict in verdicts:
            known = worst.get(verdict.name)
            if known is None or _badness(verdict) > _badness(known):
                worst[verdict.name] = verdict.model_copy(update={"sentence": f"{verdict.sentence}, batch {size}"})
    return list(worst.values())


def of_output(name: str, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return the verdicts on an output after the first: name and sentence say which it is."""
    return [
        verdict.model_copy(update={"name": f"{name}_{verdict.name}", "sentence": f"{name}: {verdict.sentence}"})
        for verdict in verdicts
    ]


def _badness(verdict: Verdict) -> float:
    shares = ("cosine", "top1_agreement", "label_agreement", "box_agreement", "shape")
    return -verdict.value if verdict.name in shares else verdict.value
