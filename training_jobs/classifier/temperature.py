"""Temperature scaling: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017."""

from __future__ import annotations

import logging
import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import log_softmax, softmax  # type: ignore[import-untyped]

from jobkit.model_spec import Calibration
from training_jobs.scoring.metrics import calibration_error

logger = logging.getLogger("training_jobs.train_classifier")

LOWEST, HIGHEST = 0.05, 20.0
LEAST_PICTURES = 100  # where 60 to 70 % of them are right, T is then off by a tenth (median, by simulation)


def fit_temperature(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> Calibration:
    """Return the temperature that makes `truth`, int [N], likeliest by `logits` [N, K], found by L-BFGS.

    It is 1, with the reason, where too few pictures would tell little, and where the best one is none between `LOWEST`
    and `HIGHEST`: where all pictures are right, every lower one is better.
    """
    precise = logits.astype(np.float64)
    reason = _not_fitted(precise, truth)
    temperature = 1.0 if reason else _best(precise, truth)
    before, after = (softmax(precise / by, axis=1) for by in (1.0, temperature))
    calibration = Calibration(
        temperature=temperature, not_fitted=reason, pictures=len(truth),
        nll_before=negative_log_likelihood(precise, truth),
        nll_after=negative_log_likelihood(precise / temperature, truth),
        ece_before=calibration_error(truth, before), ece_after=calibration_error(truth, after),
    )  # fmt: skip
    if reason:
        logger.warning("inference.temperature_scaling: the temperature stays 1: %s", reason)
    else:
        logger.info(
            "temperature %.4f: NLL %.4f, before %.4f; ECE %.4f, before %.4f", temperature,
            calibration.nll_after, calibration.nll_before, calibration.ece_after, calibration.ece_before,
        )  # fmt: skip
    return calibration


def negative_log_likelihood(logits: NDArray[np.float64], truth: NDArray[np.int64]) -> float:
    """Return the mean negative log-likelihood of `truth`, int [N], by `logits` [N, K], nats."""
    return float(-log_softmax(logits, axis=1)[np.arange(len(truth)), truth].mean())


def _not_fitted(logits: NDArray[np.float64], truth: NDArray[np.int64]) -> str | None:
    if len(truth) < LEAST_PICTURES:
        return f"there are {len(truth)} validation pictures, and fewer than {LEAST_PICTURES} would tell little"
    # The likelihood is concave in 1 / T, so that the signs of its slope tell where its maximum is.
    if _slope(logits, truth, LOWEST) <= 0:
        right = (logits.argmax(1) == truth).mean()
        return f"the best one is below {LOWEST:g}, since {right:.2%} of the validation pictures are right"
    if _slope(logits, truth, HIGHEST) >= 0:
        return f"the best one is above {HIGHEST:g}, since the logits tell next to nothing of the classes"
    return None


def _best(logits: NDArray[np.float64], truth: NDArray[np.int64]) -> float:
    def loss(log_temperature: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        temperature = math.exp(log_temperature[0])
        gradient = -_slope(logits, truth, temperature) / temperature
        return negative_log_likelihood(logits / temperature, truth), np.array([gradient])

    bounds = [(math.log(LOWEST), math.log(HIGHEST))]
    options = {"ftol": 1e-15, "gtol": 1e-9}
    found = minimize(loss, np.zeros(1), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return math.exp(found.x[0])


def _slope(logits: NDArray[np.float64], truth: NDArray[np.int64], temperature: float) -> float:
    """Return the derivative of the negative log-likelihood by 1 / T: what wrong classes have more than the right one,
    weighted by their probabilities."""
    beyond = logits - logits[np.arange(len(truth)), truth][:, None]
    return float((softmax(logits / temperature, axis=1) * beyond).sum(axis=1).mean())
