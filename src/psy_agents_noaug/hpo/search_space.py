"""The search space: typed ranges and choices for any setting of a training."""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from optuna.trial import Trial
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from psy_agents_noaug.config.schema import Section
from psy_agents_noaug.errors import ConfigError, faults_message


class _Range(Section):
    log: bool = False
    when: Annotated[dict[str, Any], Field(default_factory=dict)]

    @model_validator(mode="after")
    def _is_a_range(self) -> "_Range":
        low, high, step = (getattr(self, name) for name in ("low", "high", "step"))
        if not low < high:
            raise ValueError(f"`low` must be below `high`, but they are {low} and {high} instead.")
        if self.log and low <= 0:
            raise ValueError(f"`low` must be above 0 where `log` is true, but is {low} instead.")
        if self.log and step not in (None, 1):
            raise ValueError("`step` and `log` exclude each other.")
        if step is not None and step > high - low:
            raise ValueError(f"`step` must fit between `low` and `high`, but is {step} instead.")
        return self


class FloatRange(_Range):
    """Real numbers from `low` to `high`, both included; with `log`, uniform in the logarithm."""

    type: Literal["float"]
    low: float
    high: float
    step: Annotated[float, Field(gt=0.0)] | None = None

    def suggest(self, trial: Trial, name: str) -> float:
        return trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)


class IntRange(_Range):
    """Integers from `low` to `high`, both included, `step` apart."""

    type: Literal["int"]
    low: int
    high: int
    step: Annotated[int, Field(ge=1)] = 1

    def suggest(self, trial: Trial, name: str) -> int:
        return trial.suggest_int(name, self.low, self.high, log=self.log, step=self.step)


class Choices(Section):
    """One of several values, of any type that the setting allows."""

    type: Literal["categorical"]
    choices: Annotated[list[Any], Field(min_length=1)]
    when: Annotated[dict[str, Any], Field(default_factory=dict)]

    def suggest(self, trial: Trial, name: str) -> Any:
        labels = [_label(choice) for choice in self.choices]
        return self.choices[labels.index(trial.suggest_categorical(name, labels))]


Parameter = FloatRange | IntRange | Choices
_PARAMETER: TypeAdapter[Parameter] = TypeAdapter(Annotated[Parameter, Field(discriminator="type")])


@dataclass(frozen=True)
class SearchSpace:
    """The searched parameters.

    Args:
        parameters: by dotted key; a parameter comes after those that its condition (`when`) names.
    """

    parameters: Mapping[str, Parameter]

    @classmethod
    def read(cls, *nested: Mapping[str, Any]) -> "SearchSpace":
        """Read nested mappings of a YAML file; an entry of a later mapping replaces an earlier one.

        A mapping with a `type` is a parameter; null removes a parameter of an earlier mapping.

        Raises:
            ConfigError: with all faults.
        """
        found: dict[str, Parameter] = {}
        faults: list[str] = []
        entries = {key: entry for one in nested for key, entry in _leaves("", one)}
        for key, entry in entries.items():
            if entry is None:
                continue
            if not isinstance(entry, Mapping):
                faults.append(f"`{key}` must be a mapping with a type, but is {entry!r} instead.")
                continue
            try:
                found[key] = _PARAMETER.validate_python(dict(entry))
            except ValidationError as error:
                faults += [f"`{key}`: {_fault_text(fault)}" for fault in error.errors()]
        space, more = _in_order(found)
        if faults + more:
            raise ConfigError(faults_message("The search space is not valid:", faults + more))
        return space

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Return a value, chosen by the sampler, for each parameter whose condition holds."""
        values: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if _holds(parameter.when, values):
                values[name] = parameter.suggest(trial, name)
        return values

    def check(self, accept: Callable[[Mapping[str, Any]], object]) -> None:
        """Check both ends of each range and each choice, with the conditions of the parameter met.

        Args:
            accept: takes values by dotted key; raises ConfigError if they are not allowed.

        Raises:
            ConfigError: with all faults that `accept` raised.
        """
        faults: list[str] = []
        for name, parameter in self.parameters.items():
            for value in _extremes(parameter):
                try:
                    accept({**self._conditions(name), name: value})
                except ConfigError as error:
                    reason = str(error).removeprefix("The configuration is not valid:\n  - ")
                    fault = f"`{name}` = {value!r}: {reason}"
                    if fault not in faults:
                        faults.append(fault)
        if faults:
            raise ConfigError(faults_message("The search space does not fit the settings:", faults))

    def narrowed(
        self, best: Mapping[str, Any], top: Sequence[Mapping[str, Any]], *, width: float
    ) -> "SearchSpace":
        """Return the space around the best trial.

        A range is centred at the best value and moved to lie within the old range. Choices are those of
        the best trial and of the `top` ones. A parameter that the best trial does not have stays as it
        is, unless its condition can no longer hold.

        Args:
            best: values of the best trial, by dotted key.
            top: values of each of the best trials.
            width: size of a new range as a share of the old one, in the logarithm for a log range.
        """
        narrowed: dict[str, Parameter] = {}
        for name, parameter in self.parameters.items():
            if not _can_hold(parameter.when, narrowed):
                continue
            if name not in best:
                narrowed[name] = parameter
            elif isinstance(parameter, Choices):
                labels = {_label(values[name]) for values in (best, *top) if name in values}
                kept = [choice for choice in parameter.choices if _label(choice) in labels]
                narrowed[name] = parameter.model_copy(update={"choices": kept})
            else:
                low, high = _around(parameter, float(best[name]), width)
                narrowed[name] = parameter.model_copy(update={"low": low, "high": high})
        return replace(self, parameters=narrowed)

    def without(self, fixed: Mapping[str, Any]) -> "SearchSpace":
        """Return the space of the parameters that are left to search if the values `fixed` are set.

        Conditions on fixed parameters are resolved: they are removed, or the parameter is.
        """
        left: dict[str, Parameter] = {}
        for name, parameter in self.parameters.items():
            decided = {other: parameter.when[other] for other in parameter.when if other in fixed}
            if name in fixed or not _holds(decided, fixed):
                continue
            when = {k: wanted for k, wanted in parameter.when.items() if k not in fixed}
            # A condition on a parameter that was removed never holds.
            if all(other in left for other in when):
                left[name] = parameter.model_copy(update={"when": when})
        return replace(self, parameters=left)

    def grid(self) -> list[dict[str, Any]]:
        """Return every combination, as Optuna's parameters.

        Raises:
            ConfigError: a range has no step, or a parameter has a condition.
        """
        axes: dict[str, list[Any]] = {}
        faults: list[str] = []
        for name, parameter in self.parameters.items():
            if parameter.when:
                faults.append(f"`{name}` has a condition")
            if isinstance(parameter, Choices):
                axes[name] = [_label(choice) for choice in parameter.choices]
            elif parameter.step is None or parameter.log:
                faults.append(f"`{name}` is a range without steps")
            else:
                count = math.floor((parameter.high - parameter.low) / parameter.step + 1e-9) + 1
                axes[name] = [parameter.low + index * parameter.step for index in range(count)]
        if faults:
            raise ConfigError(faults_message("The search space is not a grid:", faults))
        return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]

    def labels(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of `values` that are searched here, as Optuna's parameters."""
        return {name: _label(value) for name, value in values.items() if name in self.parameters}

    def to_json(self) -> dict[str, Any]:
        """Return the space as a mapping that `read` accepts, with dotted keys."""
        return {name: parameter.model_dump() for name, parameter in self.parameters.items()}

    def _conditions(self, name: str) -> dict[str, Any]:
        """Return values of the parameters that `name` depends on, at which its condition holds."""
        values: dict[str, Any] = {}
        for other, wanted in self.parameters[name].when.items():
            values |= self._conditions(other) | {other: _as_list(wanted)[0]}
        return values


def _leaves(prefix: str, nested: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, entry in nested.items():
        if isinstance(entry, Mapping) and not isinstance(entry.get("type"), str):
            if not entry:
                yield f"{prefix}{key}", entry
            yield from _leaves(f"{prefix}{key}.", entry)
        else:
            yield f"{prefix}{key}", entry


def _fault_text(fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"][1:])
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"].startswith("union_tag"):
        return "`type` must be float, int or categorical."
    if fault["type"] == "extra_forbidden":
        message = "is not a known key"
    return f"`{key}` {message[0].lower()}{message[1:]}" if key else message


def _in_order(found: Mapping[str, Parameter]) -> tuple[SearchSpace, list[str]]:
    """Order parameters after those they depend on. Return the space, and the faults of conditions."""
    faults: list[str] = []
    for name, parameter in found.items():
        for other, wanted in parameter.when.items():
            on = found.get(other)
            if on is None:
                faults.append(f"`{name}` depends on `{other}`, which is not searched.")
            elif not isinstance(on, Choices):
                faults.append(f"`{name}` depends on `{other}`, which is not categorical.")
            elif not any(value in on.choices for value in _as_list(wanted)):
                faults.append(f"`{name}` depends on `{other}` being {wanted!r}, which it never is.")
    ordered: dict[str, Parameter] = {}
    waiting = dict(found)
    while waiting:
        ready = [n for n, p in waiting.items() if all(o not in waiting for o in p.when)]
        if not ready:
            faults.append(f"{', '.join(f'`{name}`' for name in waiting)} depend on each other.")
            break
        ordered |= {name: waiting.pop(name) for name in ready}
    return SearchSpace(ordered), faults


def _holds(when: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    return all(name in values and values[name] in _as_list(wanted) for name, wanted in when.items())


def _can_hold(when: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> bool:
    for name, wanted in when.items():
        on = parameters.get(name)
        if not isinstance(on, Choices) or not set(map(_label, _as_list(wanted))) & set(
            map(_label, on.choices)
        ):
            return False
    return True


def _as_list(wanted: Any) -> list[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def _extremes(parameter: Parameter) -> list[Any]:
    if isinstance(parameter, Choices):
        return parameter.choices
    return [parameter.low, parameter.high]


def _label(choice: Any) -> Any:
    """Return a choice as Optuna can store it: a number, a string, a boolean or None; others as JSON."""
    if choice is None or isinstance(choice, str | int | float):
        return choice
    return json.dumps(choice, sort_keys=True)


def _around(parameter: FloatRange | IntRange, best: float, width: float) -> tuple[Any, Any]:
    """Return the ends of the range narrowed around `best`, on the grid of its steps."""
    low, high = float(parameter.low), float(parameter.high)
    if parameter.log:
        low, high, best = math.log(low), math.log(high), math.log(best)
    half = width * (high - low) / 2
    centre = min(max(best, low + half), high - half)
    ends = centre - half, centre + half
    if parameter.log:
        ends = math.exp(ends[0]), math.exp(ends[1])
    if isinstance(parameter, FloatRange) and parameter.step is None:
        return max(ends[0], parameter.low), min(ends[1], parameter.high)
    step = parameter.step or 1
    first = parameter.low + step * math.floor((ends[0] - parameter.low) / step + 1e-9)
    last = parameter.low + step * math.ceil((ends[1] - parameter.low) / step - 1e-9)
    last = min(max(last, first + step), parameter.high)
    if isinstance(parameter, IntRange):
        return int(first), int(last)
    return float(np.round(first, 12)), float(np.round(last, 12))
