"""CONTRIBUTING.md sends a newcomer to the files that a change really touches, and not to more than three."""

from __future__ import annotations

import dataclasses

import pytest

from tests.conformance.newcomer import CHANGES, Told, examine, told


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.title)
def test_contributing_names_the_files(change):
    assert examine(change, told().get(change.title))["wrong"] == ""


def test_what_is_told_wrongly_is_seen():
    flag = next(change for change in CHANGES if change.title == "A flag")
    said = told()[flag.title]
    fewer = dataclasses.replace(said, files=frozenset(list(said.files)[1:]))
    assert "CONTRIBUTING.md numbers" in examine(flag, fewer)["wrong"]
    assert "is no example of it" in examine(flag, Told("--no-such-flag", said.files))["wrong"]
    assert examine(flag, None)["wrong"]
