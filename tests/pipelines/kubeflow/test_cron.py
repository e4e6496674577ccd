import re

import pytest

from pipelines.kubeflow.cron import checked


@pytest.mark.parametrize(
    "expression",
    [
        "0 0 2 * * *",
        "0 */15 * * * *",
        "0 30 4 1,15 * ?",
        "0 0 22 * * mon-FRI",
        "0 0 2 29 feb *",
        "5/20 0 0-12/3 * JAN,jul 0",
        "0 0 2 31 2 1",
    ],
)
def test_expressions_that_kubeflow_accepts_are_accepted(expression: str) -> None:
    assert checked(expression) == expression


def test_fields_are_separated_by_one_space() -> None:
    assert checked("  0 0  2 * *\t* ") == "0 0 2 * * *"


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("0 2 * * *", "has 5 fields; six are needed: second, minute, hour"),
        ("0 2 * * *", "put the seconds before them"),
        ("@daily", "has 1 fields"),
        ("60 0 2 * * *", "second: '60' is not within 0-59"),
        ("0 60 2 * * *", "minute: '60' is not within 0-59"),
        ("0 0 24 * * *", "hour: '24' is not within 0-23"),
        ("0 0 2 0 * *", "day of the month: '0' is not within 1-31"),
        ("0 0 2 * 13 *", "month: '13' is not within 1-12"),
        ("0 0 2 * * 7", "day of the week: '7' is not within 0-6"),
        ("0 0 2 * * 5-1", "day of the week: '5-1' starts after it ends"),
        ("0 */0 2 * * *", "minute: the step of '*/0' must be at least 1"),
        ("0 0 two * * *", "hour: 'two' is not a number"),
        ("0 0 2 * * someday", "day of the week: 'someday' is not a number or one of sun, mon"),
        ("0 0 2 L * *", "day of the month: 'L' is not a number"),
        ("0 0 2,,3 * * *", "hour: '' is none of"),
        ("0 0 *5 * * *", "hour: '*5' is none of"),
        ("0 0 -5 * * *", "hour: '-5' is none of"),
        ("0 0 2 31 feb,apr *", "no month of 'feb,apr' has a day 31, so it would never start"),
    ],
)
def test_an_invalid_expression_is_rejected_with_the_name_of_the_field(expression: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        checked(expression)
