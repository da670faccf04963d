"""pytest plugin of the Megatron unit-test runs: says what happens while it happens, one JSON line per event.

Loaded with ``-p mlm_report`` from its own folder, because inside a Megatron-LM checkout the package name
``tests`` is Megatron's. The file is named by MLM_REPORT; a process that dies leaves everything up to its last
test in it. Tests listed in the file MLM_DONE (one id per line) are deselected: they ran before a crash.

Events: ``collected`` (ids), ``broken`` (a file or folder that cannot be collected), ``start`` and ``end`` of
a test, ``finished``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MESSAGE_LENGTH = 300
_report = open(os.environ["MLM_REPORT"], "a", buffering=1)  # noqa: SIM115 - open as long as the process


def _write(event: str, **values: Any) -> None:
    _report.write(json.dumps({"event": event, **values}) + "\n")


def _failure(report: pytest.TestReport | pytest.CollectReport) -> dict[str, str]:
    """First line of the exception, and the file and line that raised it."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:
        lines = str(report.longrepr).strip().splitlines() or ["no message"]
        return {"message": lines[-1][:MESSAGE_LENGTH], "where": ""}
    first = (crash.message.strip().splitlines() or ["no message"])[0]
    where = f"{os.path.relpath(crash.path)}:{crash.lineno}"
    return {"message": first[:MESSAGE_LENGTH], "where": where}


def _skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])[:MESSAGE_LENGTH]
    return str(getattr(report, "wasxfail", "expected failure"))[:MESSAGE_LENGTH]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drops the tests that an earlier process has run."""
    done_file = Path(os.environ["MLM_DONE"])
    done = set(done_file.read_text().splitlines()) if done_file.exists() else set()
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
    items[:] = [item for item in items if item.nodeid not in done]


def pytest_collection_finish(session: pytest.Session) -> None:
    _write("collected", ids=[item.nodeid for item in session.items])


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _write("broken", id=report.nodeid, **_failure(report))
    elif report.skipped:
        _write("broken", id=report.nodeid, message=_skip_reason(report), where="", skipped=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test ends with the worst of its set-up, call and tear-down."""
    _write("start", id=item.nodeid)
    item.mlm_outcome = {"outcome": "passed"}
    begin = time.monotonic()
    try:
        return (yield)
    finally:
        _write("end", id=item.nodeid, seconds=round(time.monotonic() - begin, 3), **item.mlm_outcome)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[pytest.TestReport]:
    report = yield
    if report.failed:
        if item.mlm_outcome["outcome"] != "failed":
            item.mlm_outcome = {"outcome": "failed", "phase": report.when, **_failure(report)}
    elif report.skipped:
        item.mlm_outcome = {"outcome": "skipped", "message": _skip_reason(report)}
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    _write("finished")
