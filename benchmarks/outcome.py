"""How every benchmark ends: with one JSON line, and exit code 1 if a bar was missed."""

import json
import sys


def finish(name: str, *, ours: float, theirs: float, unit: str, missed: dict[str, bool], **more):
    """Print the JSON line; if a bar is missed, its message to stderr before, and exit 1.

    Parameters
    ----------
    missed : what is wrong, in words, and whether it is so
    more : further entries of the line

    Raises
    ------
    SystemExit
        with code 1 after the line is printed, if any bar was missed.
    """
    messages = [message for message, is_so in missed.items() if is_so]
    if messages:
        print("missed: " + "; ".join(messages), file=sys.stderr, flush=True)
    ratio = ours / theirs if theirs else None
    result = {"name": name, "ours": ours, "theirs": theirs, "ratio": ratio, "unit": unit}
    print(json.dumps(result | more), flush=True)
    if messages:
        raise SystemExit(1)
