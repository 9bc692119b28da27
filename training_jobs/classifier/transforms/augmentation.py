"""What every augmentation is: a section of the file that can be applied to a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from training_jobs.classifier.section import Section

Picture = NDArray[np.uint8]
Range = tuple[float, float]


class Augmentation(Section):
    """A random change of a picture, applied with probability `p`.

    Pictures are uint8, [H, W] or [H, W, 3]. They may be views of a cache: no augmentation writes into its input.
    """

    p: float = Field(0.5, ge=0, le=1, description="probability of applying it to a picture")

    def apply(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Return the changed picture, with as many channels; its size may differ."""
        raise NotImplementedError(type(self).__name__)

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Apply with probability `p`."""
        return self.apply(picture, rng) if self.p >= 1 or rng.random() < self.p else picture


def span(limit: float | Range) -> Range:
    """Return a limit as a range: a single number `x` means -x..x."""
    return (-abs(limit), abs(limit)) if isinstance(limit, int | float) else (min(limit), max(limit))
