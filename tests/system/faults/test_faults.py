"""What happens to each thing that one part hands to another: every fault is detected, repaired or harmless."""

from collections.abc import Callable

import pytest

from tests.system.faults.table import OUTCOMES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("thing", "fault"), OUTCOMES, ids=lambda name: name.replace(" ", "-"))
def test_a_fault_ends_as_the_table_says_and_never_silently_wrong(
    thing: str, fault: str, end_of: Callable[[str, str], str], record_property: Callable[[str, object], None]
) -> None:
    found, expected = end_of(fault, thing), OUTCOMES[thing, fault]
    assert set(found.split(" or ")) <= set(expected.split(" or ")), found
    for name, value in (("thing", thing), ("fault", fault), ("outcome", expected)):
        record_property(name, value)
