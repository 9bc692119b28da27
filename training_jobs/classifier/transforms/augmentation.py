"""What every augmentation is: a section of the file that can be applied to a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from training_jobs.classifier.section import Section

Picture = NDArray[np.uint8]
Range = tuple[float, float]


class RandomTransform(Section):
    """A transform that is applied with probability `p`."""

    p: float = Field(0.5, ge=0, le=1, description="probability of applying it to a picture")

    def apply(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Return the changed picture: uint8, as many channels; the size may change."""
        raise NotImplementedError(type(self).__name__)

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Apply with probability `p`."""
        return self.apply(picture, rng) if self.p >= 1 or rng.random() < self.p else picture


def span(limit: float | Range) -> Range:
    """Return a limit as a range: a single number `x` means -x..x."""
    return (-limit, limit) if isinstance(limit, int | float) else (min(limit), max(limit))
