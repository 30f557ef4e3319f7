"""When a recording began: by a table, a comment in its header, or its name."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import cache
from pathlib import Path
from zoneinfo import ZoneInfo

from qbee.errors import ParameterError

# AudioMoth and many others: 20230506_193000.WAV, also with a prefix.
AUDIOMOTH_NAME = "%Y%m%d_%H%M%S"
# "Recorded at 19:30:00 06/05/2023 (UTC+2) by AudioMoth 24F319055FDF2BC3 at medium gain ..."
AUDIOMOTH_COMMENT = re.compile(
    r"Recorded at (\d{2}:\d{2}:\d{2})(?:\.\d+)? (\d{2}/\d{2}/\d{4}) "
    r"\(UTC(?:([+-])(\d{1,2})(?::(\d{2}))?)?\)"
)
FIXED_ZONE = re.compile(r"(?:UTC)?([+-])(\d{1,2})(?::?(\d{2}))?")
# Digits that a directive of strptime stands for.
DIRECTIVES = {
    "Y": r"\d{4}",
    "y": r"\d{2}",
    "m": r"\d{2}",
    "d": r"\d{2}",
    "H": r"\d{2}",
    "M": r"\d{2}",
    "S": r"\d{2}",
    "f": r"\d{1,6}",
    "j": r"\d{3}",
    "z": r"[+-]\d{2}:?\d{2}|Z",
    "%": "%",
}


def zone(name: str) -> tzinfo:
    """Time zone of a name such as UTC, Europe/Ljubljana, +02:00 or UTC+2.

    Raises
    ------
    ParameterError
        if there is none.
    """
    fixed = FIXED_ZONE.fullmatch(name)
    if fixed:
        return _fixed(*fixed.groups())
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    # ZoneInfoNotFoundError is a KeyError; names that are paths are ValueErrors.
    except (KeyError, ValueError, OSError) as error:
        raise ParameterError(
            f"zone={name!r} must be UTC, an offset such as +02:00, or a name of the time zone "
            "database such as Europe/Ljubljana"
        ) from error


def _fixed(sign: str, hours: str, minutes: str | None) -> timezone:
    offset = timedelta(hours=int(hours), minutes=int(minutes or 0))
    if offset >= timedelta(hours=24):
        raise ParameterError(f"an offset of {sign}{hours}:{minutes or '00'} must be below a day")
    return timezone(-offset if sign == "-" else offset)


def of_comment(comment: str) -> datetime | None:
    """Start by the comment that an AudioMoth writes, with its offset; None in other comments."""
    found = AUDIOMOTH_COMMENT.search(comment)
    if found is None:
        return None
    clock, date, sign, hours, minutes = found.groups()
    try:
        start = datetime.strptime(f"{date} {clock}", "%d/%m/%Y %H:%M:%S")
        return start.replace(tzinfo=_fixed(sign, hours, minutes) if sign else UTC)
    # A day or an offset that does not exist; ParameterError is a ValueError.
    except ValueError:
        return None


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    parts = []
    for text, directive in re.findall(r"([^%]+)|%(.?)", pattern):
        if directive and directive not in DIRECTIVES:
            raise ParameterError(
                f"pattern={pattern!r}: %{directive} must be one of "
                f"{', '.join('%' + name for name in DIRECTIVES)}"
            )
        parts.append(f"(?:{DIRECTIVES[directive]})" if directive else re.escape(text))
    return re.compile("".join(parts))


def check_pattern(pattern: str) -> str:
    """``pattern`` itself, if it can give a date and a time.

    Raises
    ------
    ParameterError
        naming what it lacks.
    """
    _expression(pattern)
    plain = pattern.replace("%%", "")
    has = {name for name in DIRECTIVES if f"%{name}" in plain}
    if any(plain.count(f"%{name}") > 1 for name in has):
        raise ParameterError(f"pattern={pattern!r} must have every directive once")
    if not ({"Y", "y"} & has and ({"m", "d"} <= has or "j" in has) and "H" in has):
        raise ParameterError(
            f"pattern={pattern!r} must have a year (%Y), month (%m), day (%d) and hour (%H)"
        )
    return pattern


def of_name(name: str, pattern: str = AUDIOMOTH_NAME) -> datetime | None:
    """Start by a file's name: where the pattern of strptime first occurs in it; or None.

    Without a %z in the pattern the time has no zone.
    """
    for found in _expression(pattern).finditer(name):
        try:
            return datetime.strptime(found.group(), pattern)
        except ValueError:
            continue
    return None


def of_table(text: str) -> datetime:
    """Start by a table: ISO 8601, with or without an offset.

    Raises
    ------
    ParameterError
        if it is something else.
    """
    try:
        # A date alone would be taken for midnight.
        if len(text) <= len("2023-05-06"):
            raise ValueError(text)
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise ParameterError(
            f"recorded_at={text!r} must be ISO 8601, such as 2023-05-06T19:30:00+02:00"
        ) from error


def start_of(path: Path, comment: str, *, pattern: str | None = None) -> datetime | None:
    """When a recording began; None if nothing says it.

    By the user's pattern, the comment of an AudioMoth, or a name such as AudioMoth's: the first of
    these that says it.
    """
    found = of_name(path.name, pattern) if pattern else None
    return found or of_comment(comment) or of_name(path.name)


def in_zone(moment: datetime, zone: tzinfo | None) -> datetime:
    """The same moment in a zone, if both are known; the year 1 has no place in some zones."""
    try:
        return moment.astimezone(zone) if moment.tzinfo and zone else moment
    except OverflowError:
        return moment


def between(start: datetime, end: datetime) -> float:
    """Seconds that pass; a subtraction within a zone would not see its clocks put back."""
    if start.tzinfo is not None:
        start, end = start.astimezone(UTC), end.astimezone(UTC)
    return (end - start).total_seconds()


def after(start: datetime, seconds: float) -> datetime:
    """Time ``seconds`` later, in the same zone: also where its clocks are put back."""
    if start.tzinfo is None:
        return start + timedelta(seconds=seconds)
    return (start.astimezone(UTC) + timedelta(seconds=seconds)).astimezone(start.tzinfo)
