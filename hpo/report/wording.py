"""Numbers, moments and settings, as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath

NOTHING = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_MOST_NUMBERS = 12
_LONGEST = 60
_HOUR_S = 3600


def score(value: float | None) -> str:
    """Return a metric with four digits after the point."""
    return NOTHING if value is None else f"{value:.4f}".replace("-", _MINUS)


def setting(value: object) -> str:
    """Return the value of a parameter: numbers with three digits, of a path only its end, which names no machine."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return ", ".join(setting(each) for each in value)
    text = str(value)
    return shortened(f"…/{PurePosixPath(text).name}" if text.startswith("/") else text)


def shortened(text: str, longest: int = _LONGEST) -> str:
    """Return *text*, or its beginning."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def moment(value: datetime | None) -> str:
    """Return a moment in UTC; a naive one, as Optuna gives them, is of this machine's zone."""
    return NOTHING if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def hours(seconds: float) -> str:
    """Return how long that is: in hours, below one in minutes."""
    return f"{seconds / _HOUR_S:.2f} h" if seconds >= _HOUR_S else f"{seconds / 60:.1f} min"


def share(part: float, whole: float) -> str:
    """Return *part* of *whole* in percent."""
    return f"{100 * part / whole:.1f} %" if whole else NOTHING


def numbers(trials: Sequence[int], most: int = _MOST_NUMBERS) -> str:
    """Return the numbers of trials, the first of many."""
    shown = ", ".join(str(number) for number in trials[:most])
    return shown if len(trials) <= most else f"{shown} and {len(trials) - most} more"


def count(number: int, one: str, many: str | None = None) -> str:
    """Return how many there are of something."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"
