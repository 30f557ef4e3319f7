"""How every benchmark ends: with one JSON line, or with the bars that were missed."""

import json


def finish(name: str, *, ours: float, theirs: float, unit: str, missed: dict[str, bool], **more):
    """Print the JSON line; stop with a message instead if a bar is missed.

    Parameters
    ----------
    missed : what is wrong, in words, and whether it is so
    more : further entries of the line

    Raises
    ------
    SystemExit
        naming every bar that was missed.
    """
    if messages := [message for message, is_so in missed.items() if is_so]:
        raise SystemExit("; ".join(messages))
    result = {"name": name, "ours": ours, "theirs": theirs, "ratio": ours / theirs, "unit": unit}
    print(json.dumps(result | more))
