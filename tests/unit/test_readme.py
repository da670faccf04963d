"""The two READMEs say the same, and their tables can be read."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README.zh.md"))
CELL = 200
ROOMS = ("bridge", "csrc", "patches", "tests", "examples")


def blocks(file: Path) -> list[str]:
    return re.findall(r"```.*?```", file.read_text(), flags=re.DOTALL)


def figures(file: Path) -> list[str]:
    """Numbers of the table of results, in order."""
    rows = [line for line in file.read_text().splitlines() if line.startswith("|")]
    return re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?x?", "\n".join(rows))


def test_both_have_the_same_commands() -> None:
    assert len(blocks(ENGLISH)) == 3
    assert blocks(CHINESE) == blocks(ENGLISH)


def test_both_have_the_same_figures() -> None:
    assert len(figures(ENGLISH)) > 10
    assert sorted(figures(CHINESE)) == sorted(figures(ENGLISH))


PAGES = sorted(
    page for folder in ("", *ROOMS) for page in (ROOT / folder).glob("**/*.md" if folder else "*.md")
)


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
def test_cells_are_short(file: Path) -> None:
    cells = [c for line in file.read_text().splitlines() if line.startswith("|") for c in line.split("|")]
    assert max(map(len, cells), default=0) <= CELL


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(file: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
        assert link.startswith("http") or (file.parent / link).exists(), f"{file.name} links to {link}"
