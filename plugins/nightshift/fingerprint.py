"""What stands for everything that decides what a run trains, but for its data: the same data with another is new."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from nightshift.pipelines.folders import home
from nightshift.steps import Step


class Fingerprint:
    """The fingerprint of a pipeline's runs, made from the steps that its model comes from.

    An option or a parameter of the run that reaches one of them is in it because it does; what a step names in
    `not_in_fingerprint` is not.

    Args:
        steps: pulling, preparing, training; and the gate, whose rules decide what becomes of the model.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps
        digests = {
            path: hashlib.sha256((home() / path).read_bytes()).hexdigest() for step in steps for path in step.files
        }
        fixed = [
            [step.module, step.runtime, {k: v for k, v in step.options.items() if k not in step.not_in_fingerprint}]
            for step in steps
        ]
        self._fixed = json.dumps([fixed, digests], sort_keys=True)

    def __call__(self, params: Mapping[str, Any]) -> str:
        """Return 16 hexadecimal digits for a run with these parameters."""
        chosen = [
            {option: params[name] for option, name in step.params.items() if option not in step.not_in_fingerprint}
            for step in self.steps
        ]
        return hashlib.sha256((self._fixed + json.dumps(chosen, sort_keys=True)).encode()).hexdigest()[:16]
