"""What evaluation found for each golden picture: what a served version has to answer to the same files."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError
from jobkit.model_spec import ModelSpec
from jobkit.snapshot import Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Answers:
    """Of one classifier: its spec as it was evaluated, and float32 probabilities [n, labels of the spec].

    `pictures` are keys in the bottle, `sources` the names that people know them by.
    """

    spec: ModelSpec
    pictures: list[str]
    sources: list[str]
    probabilities: NDArray[np.float32]

    @classmethod
    def of(cls, spec: ModelSpec, samples: Sequence[Sample], probabilities: NDArray[np.float64]) -> Answers:
        """Return the answers of a model to `samples`: probabilities [n, labels of the spec]."""
        import numpy as np

        pictures, sources = [sample.path for sample in samples], [sample.source for sample in samples]
        return cls(spec, pictures, sources, probabilities.astype(np.float32))

    def write(self, bottle: Bottle, key: str) -> None:
        """Write them to `key`, an .npz."""
        import numpy as np

        with tempfile.TemporaryDirectory(prefix="nightshift-answers-") as folder:
            path = Path(folder) / "answers.npz"
            np.savez_compressed(
                path, spec=np.array(self.spec.model_dump_json()), pictures=np.array(self.pictures),
                sources=np.array(self.sources), probabilities=self.probabilities,
            )  # fmt: skip
            bottle.put(key, path)

    def some(self, count: int) -> Answers:
        """Return `count` of them at most, evenly over the classes that were found likeliest."""
        import numpy as np

        order = np.argsort(self.probabilities.argmax(1), kind="stable")
        chosen = order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]
        return Answers(
            self.spec, [self.pictures[i] for i in chosen], [self.sources[i] for i in chosen], self.probabilities[chosen]
        )


def read_answers(bottle: Bottle, key: str) -> Answers:
    """Return answers that `Answers.write` has written.

    Raises:
        DataValidationError: there are none at `key`, or they are damaged.
    """
    import numpy as np

    try:
        with np.load(bottle.local(key), allow_pickle=False) as stored:
            spec = ModelSpec.model_validate_json(str(stored["spec"]))
            pictures, sources = (list(map(str, stored[name])) for name in ("pictures", "sources"))
            found = Answers(spec, pictures, sources, stored["probabilities"])
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise DataValidationError(f"{bottle}/{key} is not what evaluate writes: {error}") from error
    if found.probabilities.shape != (len(pictures), len(spec.labels)) or not pictures:
        raise DataValidationError(f"{bottle}/{key} has {list(found.probabilities.shape)} answers")
    return found
