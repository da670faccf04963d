"""What differs between two reports: the one that was sent, from a chip, and the one made here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

FACTOR = 2.0
"""Errors that differ by more than this are listed."""
NOISE = 0.05
"""Errors that are smaller than this part of what is allowed are not: they are roundings that fall anyhow."""
OF_A_MACHINE = ("seconds", "memory", "tokens", "free", "total")
"""Counts whose names hold one of these differ between any two machines."""


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[str]:
    """A line for each row that differs in status, error or counts, or that one side has not."""
    first, second = ({(row["group"], row["name"]): row for row in each["rows"]} for each in (theirs, ours))
    for key in [*first, *(key for key in second if key not in first)]:
        title = f"{key[0]}: {key[1]}"
        if key not in first or key not in second:
            yield f"{title}: only {'here' if key in second else 'there'}"
            continue
        there, here = first[key], second[key]
        if there["status"] != here["status"]:
            reason = there["detail"] or here["detail"]
            yield f"{title}: {there['status']} there, {here['status']} here ({reason})"
            continue
        yield from (f"{title}: {each}" for each in _numbers(there, here))


def _numbers(there: dict[str, Any], here: dict[str, Any]) -> Iterator[str]:
    one, other = there.get("error"), here.get("error")
    if one is not None and other is not None:
        low, high = sorted((one, other))
        floor = NOISE * (there.get("allowed") or 0.0)
        if high > FACTOR * max(low, floor):
            yield f"error {one:.2e} there, {other:.2e} here"
    for name in sorted({*there["counts"], *here["counts"]}):
        a, b = there["counts"].get(name), here["counts"].get(name)
        if a != b and not any(word in name for word in OF_A_MACHINE):
            yield f"{name} {a} there, {b} here"
