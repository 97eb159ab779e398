"""Ranges: what may stand in place of a value, and how a sampler fills it in.

A *template* is nested plain data in which any value may be a range. `fill` walks it in a fixed order and asks one
function for each range it meets; ranges inside an option of a choice are met only if that option was chosen, so a
branch's own ranges exist only in it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import optuna

from pretune.search_spaces.document import is_number


@dataclass(frozen=True)
class Choice:
    """One of several values; a value may be a mapping, which makes it a branch."""

    options: tuple[Any, ...]

    def labels(self) -> tuple[str, ...]:
        """Distinct, readable names of the options, in order: a mapping's `name`, else the value itself."""
        names = [_option_name(option) for option in self.options]
        counts = Counter(names)
        return tuple(f"{name}#{i}" if counts[name] > 1 else name for i, name in enumerate(names))


@dataclass(frozen=True)
class Uniform:
    """Numbers from low to high, or with a step low, low + step, ..., high."""

    low: float
    high: float
    step: float | None = None


@dataclass(frozen=True)
class LogUniform:
    low: float
    high: float


@dataclass(frozen=True)
class Int:
    """Whole numbers from low to high, both included, `step` apart; `log` spaces them evenly in their logarithm."""

    low: int
    high: int
    log: bool = False
    step: int = 1


@dataclass(frozen=True)
class Subset:
    """Any subset of the items, the empty one included; every item is one yes/no parameter."""

    of: tuple[Any, ...]


Range = Choice | Uniform | LogUniform | Int | Subset
Suggest = Callable[[str, Range], Any]
PLAIN = (str, int, float, type(None))
PLAIN_TYPES = frozenset((*PLAIN, bool))
RANGE_KEYS = ("choice", "uniform", "log_uniform", "int", "log_int", "subset")
STEPPED = ("int", "uniform")  # kinds that may have a step beside them
INSIDE = 0.3819660112501051  # of the way from low to high: no simple fraction
MAX_OPTIONS = 500  # of a choice, each of which is checked as a whole study is
LARGEST = 2**53  # up to which whole numbers are floating-point numbers too
FEW = 16  # whole numbers that are all tried when a range is checked


def is_range(value: object) -> bool:
    return isinstance(value, Choice | Uniform | LogUniform | Int | Subset)


def is_written_range(value: object) -> bool:
    """Whether a mapping is a range as a study file writes one: `{KIND: [...]}`, or with `step` beside it."""
    return isinstance(value, Mapping) and len([key for key in value if key in RANGE_KEYS]) == 1 and (
        value.keys() <= {*RANGE_KEYS, "step"}
    )  # fmt: skip


def parse_ranges(value: Any) -> Any:
    """Replace every `{log_uniform: [a, b]}` and the like in nested data by its range object.

    Raises:
        ValueError: a malformed range; the message states the rule and the received value.
    """
    if isinstance(value, Mapping):
        if is_written_range(value):
            kind = next(key for key in value if key in RANGE_KEYS)
            if "step" in value and value["step"] is None:
                raise ValueError("step is empty; give it a number above 0, or leave it out")
            return _parse_range(kind, value[kind], value.get("step"))
        return {key: parse_ranges(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [parse_ranges(item) for item in value]
    if is_range(value):  # made in Python: held to the same rules
        return parse_ranges(to_plain(value))
    return value


def _parse_range(kind: str, body: Any, step: Any = None) -> Range:
    if not isinstance(body, list | tuple) or not body:
        raise ValueError(f"{kind} needs a list, received {body!r}")
    if step is not None and kind not in STEPPED:
        raise ValueError(f"{kind} has no step; {' and '.join(STEPPED)} have one")
    if kind in ("choice", "subset") and len(body) > MAX_OPTIONS:
        raise ValueError(f"{kind} has {len(body)} options, and at most {MAX_OPTIONS} can be searched")
    if kind == "choice":
        found = Choice(tuple(parse_ranges(item) for item in body))
        if len(set(found.labels())) < len(body):  # 1#1 beside two options called 1
            raise ValueError(f"choice has options that are told apart by nothing, received {body!r}")
        return found
    if kind == "subset":
        if len({str(item) for item in body}) < len(body):
            raise ValueError(f"subset names an item twice, received {body!r}")
        return Subset(tuple(body))
    low, high = _bounds(kind, body)
    if step is not None:
        _check_step(kind, low, high, step)
    if kind in ("int", "log_int"):
        if any(number != int(number) for number in (low, high, step or 1)):
            raise ValueError(f"{kind} needs whole numbers, received {body!r}" + (f", step {step}" if step else ""))
        return Int(int(low), int(high), log=kind == "log_int", step=int(step or 1))
    if kind == "log_uniform":
        return LogUniform(low, high)
    return Uniform(low, high) if step is None else Uniform(low, _last(low, high, float(step)), float(step))


def _last(low: float, high: float, step: float) -> float:
    """The end that the steps lead to, not below it: Optuna counts them in decimal digits, and would leave it out."""
    exact = Decimal(repr(low)) + round((high - low) / step) * Decimal(repr(step))
    if Decimal(repr(high)) >= exact:
        return high
    end = float(exact)
    return end if Decimal(repr(end)) >= exact else math.nextafter(end, math.inf)


def _bounds(kind: str, body: list[Any] | tuple[Any, ...]) -> tuple[float, float]:
    if any(isinstance(item, bool) or (isinstance(item, str) and not is_number(item)) for item in body):
        raise ValueError(f"{kind} needs two numbers [low, high], received {body!r}")
    try:
        low, high = (float(item) for item in body)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{kind} needs two numbers [low, high], received {body!r}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{kind} needs low < high, received {body!r}")
    if max(-low, high) > LARGEST:
        raise ValueError(f"{kind} needs numbers up to 2^53, received {body!r}")
    if kind.startswith("log") and low <= 0:
        raise ValueError(f"{kind} needs bounds above 0, received {body!r}")
    return low, high


def _check_step(kind: str, low: float, high: float, step: object) -> None:
    """Steps lead from low to high."""
    if isinstance(step, bool) or not isinstance(step, int | float) or not (0 < step <= LARGEST):
        raise ValueError(f"step should be a number above 0, received {step!r}")
    steps = (high - low) / step
    if round(steps) < 1 or abs(steps - round(steps)) > 1e-9 * steps:
        end = low + math.floor(steps + 1e-9) * step
        way = f"end at {end:.10g}, or choose" if steps >= 1 else "choose"
        raise ValueError(f"{kind}: steps of {step:g} from {low:g} do not end at {high:g}; {way} another step")


def _option_name(option: Any) -> str:
    if isinstance(option, Mapping):
        named = option.get("name") or option.get("dataset")
        return str(named or json.dumps(to_plain(option), sort_keys=True, default=str))
    return json.dumps(to_plain(option), default=str) if not isinstance(option, str) else option


def fill(template: Any, suggest: Suggest, name: str = "") -> Any:
    """The template with every range replaced by what `suggest(name, range)` answers, in the order of the file.

    `suggest` answers a value, for a `Choice` the index of the option.
    """
    if type(template) is dict:  # far faster to tell than any mapping; most of what it holds is plain
        start = f"{name}." if name else ""
        return {
            key: item if type(item) in PLAIN_TYPES else fill(item, suggest, f"{start}{key}")
            for key, item in template.items()
        }
    if isinstance(template, PLAIN):
        return template
    if isinstance(template, Choice):
        index = suggest(name, template)
        return fill(template.options[index], suggest, f"{name}[{template.labels()[index]}]")
    if is_range(template):
        return suggest(name, template)
    if isinstance(template, Mapping):
        return {key: fill(item, suggest, f"{name}.{key}" if name else str(key)) for key, item in template.items()}
    if isinstance(template, list | tuple):
        return [fill(item, suggest, f"{name}.{i}") for i, item in enumerate(template)]
    return template


def ranges(template: Any, name: str = "") -> Iterator[tuple[str, Range]]:
    """Every (name, range) of a template, those inside branches included."""
    if isinstance(template, PLAIN):
        return
    if type(template) is dict:
        start = f"{name}." if name else ""
        for key, item in template.items():
            if type(item) not in PLAIN_TYPES:
                yield from ranges(item, f"{start}{key}")
    elif isinstance(template, Choice):
        yield name, template
        for label, option in zip(template.labels(), template.options, strict=True):
            yield from ranges(option, f"{name}[{label}]")
    elif is_range(template):
        yield name, template
    elif isinstance(template, Mapping):
        for key, item in template.items():
            yield from ranges(item, f"{name}.{key}" if name else str(key))
    elif isinstance(template, list | tuple):
        for i, item in enumerate(template):
            yield from ranges(item, f"{name}.{i}")


def representatives(item: Range) -> tuple[Any, ...]:
    """The answers to `suggest` that between them show whether a range holds only valid values; both ends come first.

    Of whole numbers, all where they are few; else the ends, their neighbours and the middle, since what must divide
    does so at the ends alone by chance. Of others an odd number inside, for what must be whole.
    """
    if isinstance(item, Choice):
        return tuple(range(len(item.options)))
    if isinstance(item, Subset):
        return ((), item.of)
    ends = (item.low, item.high)
    if isinstance(item, Int):
        inside = range(item.low + item.step, item.high, item.step)
        few = len(inside) + 2 <= FEW
        return ends + (tuple(inside) if few else tuple(sorted({inside[0], inside[len(inside) // 2], inside[-1]})))
    return (*ends, stepped(item, item.low + (item.high - item.low) * INSIDE))


def stepped(item: Uniform | LogUniform, value: float) -> float:
    """The value itself, or of a range with steps the closest one."""
    if isinstance(item, LogUniform) or item.step is None:
        return value
    return min(item.high, item.low + round((value - item.low) / item.step) * item.step)


def centre(name: str, item: Range) -> Any:
    """The middle of a range (geometric where it is logarithmic), the first option, the empty subset."""
    if isinstance(item, Choice):
        return 0
    if isinstance(item, Subset):
        return []
    if isinstance(item, Int):
        middle = math.sqrt(item.low * item.high) if item.log else (item.low + item.high) / 2
        return round(middle) if item.step == 1 else item.low + round((middle - item.low) / item.step) * item.step
    if isinstance(item, LogUniform):
        return math.sqrt(item.low * item.high)
    return stepped(item, (item.low + item.high) / 2)


def suggest_from(trial: optuna.trial.BaseTrial) -> Suggest:
    """Ask an Optuna trial for the value of each range; the parameter's name is the range's dotted key."""

    def suggest(name: str, item: Range) -> Any:
        if isinstance(item, Choice):
            return item.labels().index(str(trial.suggest_categorical(name, item.labels())))
        if isinstance(item, Subset):
            return [option for option in item.of if trial.suggest_categorical(f"{name}[{option}]", (False, True))]
        if isinstance(item, Int):
            return trial.suggest_int(name, item.low, item.high, step=item.step, log=item.log)
        if isinstance(item, LogUniform):
            return trial.suggest_float(name, item.low, item.high, log=True)
        return trial.suggest_float(name, item.low, item.high, step=item.step)

    return suggest


def to_plain(template: Any) -> Any:
    """The template as YAML-able data again, ranges in the form in which a study file writes them."""
    if isinstance(template, Choice):
        return {"choice": [to_plain(option) for option in template.options]}
    if isinstance(template, Subset):
        return {"subset": list(template.of)}
    if isinstance(template, Int):
        step = {} if template.step == 1 else {"step": template.step}
        return {"log_int" if template.log else "int": [template.low, template.high]} | step
    if isinstance(template, Uniform):
        return {"uniform": [template.low, template.high]} | ({} if template.step is None else {"step": template.step})
    if isinstance(template, LogUniform):
        return {"log_uniform": [template.low, template.high]}
    if isinstance(template, Mapping):
        return {key: to_plain(item) for key, item in template.items()}
    return [to_plain(item) for item in template] if isinstance(template, list | tuple) else template
