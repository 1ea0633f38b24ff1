"""What a message must name is found in any order, as a whole number, and not in the name of a test's folder."""

import pytest

from tests.messages import naming, says

PLACE = "/tmp/pytest-of-me/pytest-7/popen-gw0/test_checksum_of_rows0"
TEXT = f"data.lanes=16: 1101 of 2000 rows in {PLACE}/a/s1.tar; delete s1.tar.index.npy (0.25)"


@pytest.mark.parametrize(
    "facts",
    [("delete", "data.lanes=16"), (1101, 2000), ("s1.tar", 0.25), ("a/s1.tar",), (PLACE,)],
)
def test_facts_are_found_in_any_order(facts):
    assert says(TEXT, *facts) and says(f"first\n{TEXT}", *facts)


@pytest.mark.parametrize(
    "facts", [(101,), (11,), (200,), (25,), (0.2,), ("data.lanes=1",), ("checksum",), ("delete", "gone"), ("s1xtar",)]
)
def test_a_part_of_a_number_or_a_word_of_the_folder_is_no_fact(facts):
    assert not says(TEXT, *facts)


def test_a_message_that_is_to_name_nothing_is_refused():
    with pytest.raises(AssertionError):
        naming()
