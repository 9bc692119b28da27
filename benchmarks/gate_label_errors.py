"""How well confident learning ranks planted errors in real data, and what reviewing the queue is worth.

    .venv/jobs/bin/python -m benchmarks.gate_label_errors [--seeds 4] [--folds 5]

Scikit-learn's 1,797 handwritten digits; a twentieth of all labels, golden ones too, are replaced by another digit. The
ranking is that of `find_label_errors`; so that it takes seconds a random forest judges, out of fold by picset, and a
neural network of one layer is trained before and after. A person is simulated who looks at the queue and knows the
truth. Accuracies are against the true golden labels.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold, cross_val_predict
from sklearn.neural_network import MLPClassifier

from training_jobs.scoring.label_errors import suspects

SHARE, PICSET_SIZE = 0.05, 6  # a picset as in services/collect/load_digits.py


def measure(seed: int, folds: int) -> dict[str, float]:
    """Plant errors, find them, review them; return precision at k, recall, and accuracies before and after."""
    random = np.random.default_rng(seed)
    pixels, truth = load_digits(return_X_y=True)
    pixels, truth = pixels / 16, truth.astype(np.int64)
    place = np.array([(truth[:n] == digit).sum() // PICSET_SIZE for n, digit in enumerate(truth)])
    groups = truth * len(truth) + place
    labels = truth.copy()
    planted = random.choice(len(truth), round(SHARE * len(truth)), replace=False)
    labels[planted] = (truth[planted] + random.integers(1, 10, len(planted))) % 10
    learned, golden = next(GroupShuffleSplit(1, test_size=0.15, random_state=seed).split(pixels, truth, groups))
    forest = RandomForestClassifier(300, random_state=seed)
    probabilities = np.zeros((len(truth), 10))
    probabilities[learned] = cross_val_predict(
        forest, pixels[learned], labels[learned], groups=groups[learned], method="predict_proba",
        cv=StratifiedGroupKFold(folds, shuffle=True, random_state=seed),
    )  # fmt: skip
    probabilities[golden] = forest.fit(pixels[learned], labels[learned]).predict_proba(pixels[golden])
    found = suspects(labels, probabilities)
    hits = np.isin(found.picture, planted)
    reviewed = labels.copy()
    reviewed[found.picture] = truth[found.picture]
    scores = {}
    for name, given in (("before", labels), ("after", reviewed)):
        model = MLPClassifier((64,), max_iter=150, random_state=seed).fit(pixels[learned], given[learned])
        scores[name] = float((model.predict(pixels[golden]) == truth[golden]).mean())
    return {
        "seed": seed, "planted": len(planted), "queue": len(hits), "sure": int(found.sure.sum()),
        "precision at k": float(hits[: len(planted)].sum() / len(planted)), "recall": float(hits.sum() / len(planted)),
        "wrong after the review": int((reviewed != truth).sum()), **scores,
    }  # fmt: skip


def main() -> None:
    """Print a JSON line a seed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--folds", type=int, default=5)
    options = parser.parse_args()
    for seed in range(options.seeds):
        print(json.dumps(measure(seed, options.folds)), flush=True)


if __name__ == "__main__":
    main()
