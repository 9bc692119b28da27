"""Confident learning: which labels are probably wrong, by probabilities of models that never saw them.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70 (2021). A class is
believed of a picture where its probability is at least the mean that the class has on pictures with its label; a
picture that is believed to be of another class than its label is probably mislabeled (the off-diagonal of the confident
joint). As in the authors' own library, which a test compares with, a picture whose label is also the likeliest class is
none of them. Where models are seldom sure that leaves out many errors, so that all pictures follow of which another
class is likelier than the label; both parts are ranked by the normalized margin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TOLERANCE = 1e-6  # so that a class whose pictures all have the same probability is believed of them


class Suspects(NamedTuple):
    """Pictures whose labels may be wrong, the surest first: all [M].

    `sure` are those of confident learning. `suggested` is the class that is believed, int [M]; of several labels what
    they would be, 0 or 1 [M, K]. `margin` is the probability of the label less that of the likeliest other class, -1 to
    1: the less, the surer.
    """

    picture: NDArray[np.int64]
    suggested: NDArray[np.int64]
    margin: NDArray[np.float64]
    sure: NDArray[np.bool_]


def suspects(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> Suspects:
    """Return what is probably mislabeled.

    Args:
        labels: the given class of each picture, int [N].
        probabilities: out-of-sample, float [N, K].
    """
    import numpy as np

    believed = _believed(labels, probabilities)
    margins = normalized_margins(labels, probabilities)
    sure = (believed >= 0) & (believed != labels)
    suggested = np.where(sure, believed, probabilities.argmax(1))
    order = _ranked(np.flatnonzero(margins < 0), margins, sure)
    return Suspects(order, suggested[order], margins[order], sure[order])


def several_suspects(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> Suspects:
    """Return the same of pictures of several labels: each class is judged by itself, as a yes or a no.

    Args:
        labels: 0 or 1, int [N, K].
        probabilities: out-of-sample, float [N, K].
    """
    import numpy as np

    suggested, margins, sure = labels.copy(), np.ones(len(labels)), np.zeros(len(labels), bool)
    for column in range(labels.shape[1]):
        yes = probabilities[:, column]
        found = suspects(labels[:, column], np.stack([1 - yes, yes], axis=1))
        suggested[found.picture, column] = found.suggested
        margins[found.picture] = np.minimum(margins[found.picture], found.margin)
        sure[found.picture] |= found.sure
    order = _ranked(np.flatnonzero((suggested != labels).any(1)), margins, sure)
    return Suspects(order, suggested[order], margins[order], sure[order])


def _ranked(chosen: NDArray[np.int64], margins: NDArray[np.float64], sure: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the chosen pictures, the sure ones first, each part by its margin."""
    import numpy as np

    return chosen[np.lexsort((margins[chosen], ~sure[chosen]))]


def normalized_margins(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability of each picture's label less that of the likeliest other class, [N]."""
    import numpy as np

    rows = np.arange(len(labels))
    others = probabilities.copy()
    others[rows, labels] = -np.inf
    return probabilities[rows, labels] - others.max(1)  # type: ignore[no-any-return]


def _believed(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the likeliest class of each picture among those that reach their thresholds, int [N]; -1: none does."""
    import numpy as np

    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    own = np.bincount(labels, probabilities[np.arange(len(labels)), labels], classes)
    thresholds = np.divide(own, counts, out=np.full(classes, np.inf), where=counts > 0)
    reached = probabilities >= thresholds - _TOLERANCE
    likeliest = np.where(reached, probabilities, -np.inf).argmax(1)
    return np.where(reached.any(1), likeliest, -1)
