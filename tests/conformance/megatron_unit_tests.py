"""Megatron-LM's own unit tests through the bridge, beside the same files on plain torch CPU.

    python -m tests.conformance.megatron_unit_tests --megatron-lm-path DIR [--ranks 1,2] [--quick]
        [--files REGEX] [--json FILE] [--failures FILE.md] [--workers N]

Every file of `tests/unit_tests` runs in processes of its own (`megatron_runs.py`): a crash or a hang costs
one test, not the file. Failures that no device of ours can mend are counted apart, by the table
`EXCUSES` of `megatron_causes.py`; the others are grouped by the exception they ended with. A run of all files
through the bridge fails for an excuse that excused nothing.
What the tests import beyond Megatron's own needs is the extra `megatron-tests`.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks.report import Report, arguments
from tests.conformance.megatron_causes import EXCUSES, Excuse, cause, excuse_of
from tests.conformance.megatron_runs import FLAVOURS, FileRun, Outcome, Server, run_file

AIM = 1.5
MOST_NAMED = 2
"""Files that a cell names; of more it gives the number."""
COLUMNS = ("passed", "failed", "skipped", "not applicable")
QUICK = r"transformer/test_(mlp|attention|rope)|tensor_parallel/test_(layers|random|mappings)"


def test_files(root: Path, pattern: str) -> list[str]:
    """Test files below `tests/unit_tests`, relative to `root`, that `pattern` finds.

    Raises:
        SystemExit: no such folder, or no such file.
    """
    folder = root / "tests" / "unit_tests"
    files = [str(p.relative_to(root)) for p in sorted(folder.rglob("test_*.py"))]
    files = [f for f in files if re.search(pattern, f) and Path(f).name != "test_utilities.py"]
    if not files:
        raise SystemExit(f"{folder} has no test file that matches {pattern!r}; is it a Megatron-LM checkout?")
    return files


def column(file: str, test: str, outcome: Outcome) -> str:
    """Column of the table that a test counts in."""
    if outcome.outcome in ("passed", "skipped"):
        return outcome.outcome
    return "not applicable" if excuse_of(f"{file}::{test}", outcome.message) else "failed"


def outcomes(runs: dict[str, FileRun]) -> Iterator[tuple[str, str, Outcome]]:
    """(file, test, outcome) of all tests of one flavour."""
    for file, run in sorted(runs.items()):
        for test, outcome in run.tests.items():
            yield file, test, outcome


def count(runs: dict[str, FileRun]) -> Counter:
    """Tests per column."""
    return Counter(column(*entry) for entry in outcomes(runs))


def by_cause(runs: dict[str, FileRun], which: str) -> list[tuple[str, list[tuple[str, str, Outcome]]]]:
    """Tests of one column ("failed" or "not applicable") grouped by cause, largest group first."""
    groups: dict[str, list[tuple[str, str, Outcome]]] = {}
    for file, test, outcome in outcomes(runs):
        if column(file, test, outcome) == which:
            excuse = excuse_of(f"{file}::{test}", outcome.message)
            reason = excuse.reason if excuse else cause(outcome)
            groups.setdefault(reason, []).append((file, test, outcome))
    return sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))


def unused_excuses(runs: Sequence[dict[str, FileRun]]) -> list[Excuse]:
    """Excuses that cover no failure of these runs."""
    failures = [
        (f"{file}::{test}", outcome.message)
        for each in runs
        for file, test, outcome in outcomes(each)
        if column(file, test, outcome) == "not applicable"
    ]
    used = {excuse_of(*failure) for failure in failures}
    return [excuse for excuse in EXCUSES if excuse not in used]


def read_results(path: Path) -> Iterator[tuple[tuple[str, str, int], FileRun]]:
    """(file, flavour, ranks) and outcomes of each line of `--results`; of two alike the last counts."""
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        job = (entry.pop("file"), entry.pop("run"), entry.pop("ranks"))
        tests = {name: Outcome(**outcome) for name, outcome in entry.pop("tests").items()}
        yield job, FileRun(tests, **entry)


def in_both(
    all_runs: dict[tuple[str, int], dict[str, FileRun]], ranks: int
) -> dict[str, dict[str, FileRun]] | None:
    """Runs of the files that were run both ways, by flavour; None if there are none."""
    found = {flavour: all_runs.get((flavour, ranks), {}) for flavour in ("bridge", "plain")}
    files = set.intersection(*(set(runs) for runs in found.values()))
    return {name: {f: runs[f] for f in files} for name, runs in found.items()} if files else None


def commit() -> str:
    """Short name of the product's commit, with + where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--dirty=+"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def failures_document(all_runs: dict[tuple[str, int], dict[str, FileRun]], tag: str) -> str:
    """Markdown: counts, and for each number of ranks the bridge's failures by cause with their tests."""
    lines = [
        f"# Megatron-LM's unit tests, {tag}",
        "",
        "Written by `python -m tests.conformance.megatron_unit_tests --failures`. Not edited by hand.",
        "",
        "| ranks | run | files | " + " | ".join(COLUMNS) + " |",
        "|---|---|---|" + "---|" * len(COLUMNS),
    ]
    for (flavour, ranks), runs in sorted(all_runs.items(), key=lambda item: (item[0][1], item[0][0])):
        counts = count(runs)
        numbers = [str(counts[c]) for c in COLUMNS]
        lines.append(f"| {ranks} | {flavour} | {len(runs)} | " + " | ".join(numbers) + " |")
    for ranks in sorted({ranks for _, ranks in all_runs}):
        both = in_both(all_runs, ranks)
        if both:
            ours, plain = (count(both[flavour])["passed"] for flavour in ("bridge", "plain"))
            lines += [
                "",
                f"On the {len(both['plain'])} files run both ways at {ranks} rank(s): {ours} passes",
            ]
            lines[-1] += f" through the bridge, {plain} on plain torch."
    for (flavour, ranks), runs in sorted(all_runs.items(), key=lambda item: (item[0][1], item[0][0])):
        commits = Counter(run.commit or "not recorded" for run in runs.values())
        told = ", ".join(f"{name} ({n} files)" for name, n in commits.most_common())
        lines += ["", f"Commits, {flavour}, {ranks} rank(s): {told}."]
    for (flavour, ranks), runs in all_runs.items():
        if flavour != "bridge":
            continue
        for which in ("failed", "not applicable"):
            lines += ["", f"## {ranks} rank(s), {which}", "", "| tests | cause | where |", "|---|---|---|"]
            for reason, tests in by_cause(runs, which):
                files = Counter(file.removeprefix("tests/unit_tests/") for file, _, _ in tests)
                where = ", ".join(f"{file} ({n})" for file, n in files.most_common(MOST_NAMED))
                where += f" and {len(files) - MOST_NAMED} more files" if len(files) > MOST_NAMED else ""
                text = reason.replace("|", "\\|").replace("<", "&lt;")
                lines.append(f"| {len(tests)} | {text} | {where} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Entry point."""
    parser = arguments(__doc__)
    parser.add_argument("--megatron-lm-path", type=Path, required=True, metavar="DIR")
    parser.add_argument("--ranks", default="1", help="comma-separated numbers of processes (default: 1)")
    parser.add_argument("--files", default="", metavar="REGEX", help="only files whose path it matches")
    parser.add_argument("--flavours", default=",".join(FLAVOURS), help="bridge, plain or both (default)")
    parser.add_argument("--limit", type=int, default=60, help="seconds a test may take (default: 60)")
    parser.add_argument("--workers", type=int, default=1, help="files at a time (default: 1)")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep what the processes printed")
    parser.add_argument("--results", type=Path, metavar="FILE", help="append outcomes as they come")
    parser.add_argument("--resume", action="store_true", help="do not run what --results holds")
    parser.add_argument("--report", action="store_true", help="run nothing: report what --results holds")
    parser.add_argument("--failures", type=Path, metavar="FILE", help="write the bridge's failures, by cause")
    options = parser.parse_args()
    root = options.megatron_lm_path.resolve()
    files = test_files(root, options.files or (QUICK if options.quick else ""))
    if options.logs:
        options.logs.mkdir(parents=True, exist_ok=True)
    report = Report("megatron_unit_tests", f"Unit tests of {root.name}: bridge and plain torch CPU", options)
    jobs = [
        (file, flavour, int(ranks))
        for ranks in options.ranks.split(",")
        for file in files
        for flavour in options.flavours.split(",")
    ]
    all_runs: dict[tuple[str, int], dict[str, FileRun]] = {(flavour, ranks): {} for _, flavour, ranks in jobs}
    if options.resume or options.report:
        for job, run in read_results(options.results):
            if job in jobs:
                all_runs[job[1:]][job[0]] = run
        jobs = [] if options.report else [job for job in jobs if job[0] not in all_runs[job[1:]]]
    at_commit = commit()
    with contextlib.ExitStack() as stack:
        servers = {key: stack.enter_context(Server(root, *key)) for key in {job[1:] for job in jobs}}
        pool = stack.enter_context(ThreadPoolExecutor(options.workers))
        futures = {
            pool.submit(run_file, servers[job[1:]], job[0], options.limit, options.logs): job for job in jobs
        }
        for future in as_completed(futures):
            file, flavour, ranks = futures[future]
            run = all_runs[flavour, ranks][file] = future.result()
            run.commit = at_commit
            print(f"{flavour} {ranks} {file}: {dict(count({file: run}))}, {run.seconds:.0f} s", flush=True)
            if options.results:
                line = json.dumps({"file": file, "run": flavour, "ranks": ranks, **asdict(run)})
                with options.results.open("a") as results:
                    results.write(line + "\n")
    for (flavour, ranks), runs in all_runs.items():
        counts = count(runs)
        report.row(
            ranks=ranks,
            run=flavour,
            files=len(runs),
            **{c: counts[c] for c in COLUMNS},
            lost=sum(r.lost for r in runs.values()),
        )
        report.summary[f"causes, {flavour}, {ranks} ranks"] = "".join(
            f"\n  {len(tests):4} {reason}" for reason, tests in by_cause(runs, "failed")[:40]
        )
    for ranks in sorted({ranks for _, ranks in all_runs}):
        both = in_both(all_runs, ranks)
        if both:
            ours, plain = (count(both[flavour])["passed"] for flavour in ("bridge", "plain"))
            ratio = ours / plain if plain else float("inf")
            what = f"{ranks} ranks: {AIM}x as many passes as plain, {len(both['plain'])} files"
            report.mark(what, ratio >= AIM, f"{ours} against {plain}, {ratio:.2f}")
    bridge = [runs for (flavour, _), runs in all_runs.items() if flavour == "bridge"]
    if bridge and not (options.files or options.quick):
        unused = [f"{excuse.reason} ({excuse.message or excuse.test})" for excuse in unused_excuses(bridge)]
        report.mark("every excuse excuses a test", not unused, "; ".join(unused) or "all do")
    if options.failures:
        options.failures.write_text(failures_document(all_runs, root.name))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
