"""The file of a hyperparameter search: which keys of a training configuration are varied, within which bounds."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import Field, ValidationError, model_validator

from jobkit.errors import ConfigurationError
from nightshift_common.names import Name
from nightshift_common.yaml_file import ConfigFile, ConfigFileError, Location, WrongValues
from training_jobs.classifier.config import Config, read_config
from training_jobs.classifier.section import Section

NOT_VARIED = ("experiment_name", "seed", "directories", "dataset.label_source", "dataset.val_part",
              "dataset.data_fraction", "dataset.people_crops", "training.best_by")  # fmt: skip
"""Keys that change what is compared, not the model."""


class Range(Section):
    """Numbers between two bounds, both included; whole ones where both bounds are."""

    low: int | float = Field(description="lowest value")
    high: int | float = Field(description="highest value")
    log: bool = Field(False, description="as likely between 1e-5 and 1e-4 as between 1e-4 and 1e-3")
    step: int | float | None = Field(None, gt=0, description="distance between values; not with log")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems: list[tuple[Location, str]] = []
        if self.low >= self.high:
            problems.append((("high",), f"it is {self.high:g}, not above low, which is {self.low:g}"))
        if self.log and self.low <= 0:
            problems.append((("low",), f"it is {self.low:g}; with log it has to be above 0"))
        if self.log and self.step is not None:
            problems.append((("step",), "it does not go with log"))
        if isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, float):
            problems.append((("step",), f"it is {self.step:g}; between whole numbers it is whole"))
        if problems:
            raise WrongValues(problems)
        return self

    @property
    def samples(self) -> list[Any]:
        """Values that have to be valid for all to be."""
        return [self.low, self.high]

    @property
    def distribution(self) -> BaseDistribution:
        """The range as Optuna has it."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return IntDistribution(self.low, self.high, self.log, int(self.step or 1))
        return FloatDistribution(self.low, self.high, self.log, self.step)

    def value(self, chosen: Any) -> Any:
        """Return what stands in the configuration for what Optuna chose."""
        return chosen


class Choices(Section):
    """One of a list: whatever the key takes, mappings and lists as well."""

    choices: list[Any] = Field(min_length=2, description="values")

    @property
    def samples(self) -> list[Any]:
        """Values that have to be valid for all to be."""
        return self.choices

    @property
    def distribution(self) -> BaseDistribution:
        """The choices as Optuna keeps them: their JSON."""
        return CategoricalDistribution([json.dumps(choice, sort_keys=True) for choice in self.choices])

    def value(self, chosen: Any) -> Any:
        """Return what stands in the configuration for what Optuna chose."""
        return json.loads(chosen)


class SearchFile(Section):
    """A search."""

    config_filename: str = Field(min_length=1, description="the configuration that is varied; relative to this file")
    study: Name | None = Field(None, description="name of the study; default: by group and content")
    trials: int = Field(20, ge=1, le=10_000, description="trainings a call, at most; --trials overrides it")
    minutes: float | None = Field(None, gt=0, description="time a call, at most; --minutes overrides it")
    pruner: Literal["median", "hyperband", "none"] = Field(
        "median", description="ends trainings that fall behind, by their score of each epoch"
    )
    parameters: dict[str, Range | Choices] = Field(min_length=1, description="dotted key -> range or choices")


class Search(Section):
    """A search file with the configuration that it varies."""

    file: SearchFile
    base: Config

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What Optuna draws from, by dotted key."""
        return {name: parameter.distribution for name, parameter in self.file.parameters.items()}

    def config(self, chosen: Mapping[str, Any]) -> Config:
        """Return the configuration with what Optuna chose.

        Raises:
            ConfigurationError: the values contradict each other.
        """
        values = {name: self.file.parameters[name].value(value) for name, value in chosen.items()}
        try:
            return _with(self.base, values)
        except ValidationError as error:
            shown = ", ".join(f"{name}: {value}" for name, value in values.items())
            raise ConfigurationError(f"these values contradict each other: {shown} ({error})") from error


def read_search(path: Path) -> Search:
    """Return the search of the file at `path`.

    Raises:
        ConfigurationError: it or the configuration that it names has errors; all are listed, each with its line.
    """
    try:
        file = ConfigFile.read(path)
        found = file.validate(SearchFile)
        base = read_config(path.parent / found.config_filename)
        known = _keys(base.model_dump(mode="json"))
        for name, parameter in found.parameters.items():
            where: Location = ("parameters", name)
            if any(name == fixed or name.startswith(f"{fixed}.") for fixed in NOT_VARIED):
                file.add(where, "it changes what is compared, not the model: it cannot be varied")
            elif name not in known:
                file.add(where, f"there is no such key of a training configuration; valid: {', '.join(sorted(known))}")
            else:
                for value in parameter.samples:
                    if problem := _problem(base, name, value):
                        file.add(where, f"{value!r} is not valid: {problem}")
        file.raise_if_any()
    except ConfigFileError as error:
        raise ConfigurationError(str(error)) from error
    return Search(file=found, base=base)


def as_file(config: Config) -> str:
    """Return the configuration as the text of a file that `train_classifier` takes."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _with(base: Config, values: Mapping[str, Any]) -> Config:
    content = copy.deepcopy(base.model_dump(mode="json"))
    for name, value in values.items():
        *sections, key = name.split(".")
        place = content
        for section in sections:
            place = place[section]
        place[key] = value
    return Config.model_validate_json(json.dumps(content), strict=True)


def _problem(base: Config, name: str, value: Any) -> str | None:
    """Return what is wrong with a value by itself; contradictions to other keys show when values are put together."""
    try:
        _with(base, {name: value})
    except ValidationError as error:
        for item in error.errors():
            if ".".join(str(part) for part in item["loc"]).startswith(name):
                return str(item["msg"])
    return None


def _keys(content: Mapping[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, value in content.items():
        found |= _keys(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name}
    return found
