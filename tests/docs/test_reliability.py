"""docs/reliability.md holds how every fault ends, as the tests of the faults expect it."""

from pathlib import Path

from benchmarks.reliability import PAGE, outcomes_in, outcomes_on, table
from tests.system.faults.table import OUTCOMES


def test_the_page_holds_every_cell() -> None:
    assert outcomes_on(PAGE.read_text()) == OUTCOMES
    assert len(OUTCOMES) >= 200


def test_the_table_is_made_from_the_report_of_the_tests(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(
        '<testsuites><testsuite><testcase name="a"><properties><property name="thing" value="ledger"/>'
        '<property name="fault" value="deleted"/><property name="outcome" value="detected (3)"/></properties>'
        '</testcase><testcase name="b"/></testsuite></testsuites>'
    )
    assert outcomes_in(tmp_path / "report.xml") == {("ledger", "deleted"): "detected (3)"}
    text = f"<!-- table -->\n{table(OUTCOMES)}<!-- end of the table -->\n"
    assert outcomes_on(text) == OUTCOMES
