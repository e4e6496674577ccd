"""`python -m benchmarks.reliability`: try every fault, and write how each ended into docs/reliability.md."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from components.progress import say

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
TESTS = "tests/system/faults"
_BEGIN, _END = "<!-- table -->\n", "<!-- end of the table -->\n"
Outcomes = Mapping[tuple[str, str], str]
"""How a cell ended, by thing and fault."""


def outcomes_in(report: Path) -> dict[tuple[str, str], str]:
    """Return the cells in pytest's report in the JUnit format."""
    found = {}
    for test in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - our own file
        noted = {each.get("name", ""): each.get("value", "") for each in test.iter("property")}
        if "outcome" in noted:
            found[noted["thing"], noted["fault"]] = noted["outcome"]
    return found


def table(outcomes: Outcomes) -> str:
    """Return the table in Markdown: a line for each thing, a column for each fault."""
    things, faults = (list(dict.fromkeys(cell[place] for cell in outcomes)) for place in (0, 1))
    lines = [["", *faults], ["---"] * (len(faults) + 1)]
    lines += [[thing, *(outcomes.get((thing, fault), "") for fault in faults)] for thing in things]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def outcomes_on(page: str) -> dict[tuple[str, str], str]:
    """Return the cells of the table on the page."""
    text = page.partition(_BEGIN)[2].partition(_END)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    heading, _, *lines = rows
    return {(line[0], fault): cell for line in lines for fault, cell in zip(heading[1:], line[1:], strict=True) if cell}


def main() -> int:
    """Run the tests, write the page, and return the exit code of pytest: 0 if all cells ended as expected."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", TESTS, f"--junitxml={report}"]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code:
            say(f"{PAGE} stays as it was: a cell ended otherwise than the tests expect")
            return code
        found = outcomes_in(report)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    PAGE.write_text(f"{before}{_BEGIN}{table(found)}{_END}{after}", encoding="utf-8")
    say(f"{PAGE}: {len(found)} cells")
    return 0


if __name__ == "__main__":
    sys.exit(main())
