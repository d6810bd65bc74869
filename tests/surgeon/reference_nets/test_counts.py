"""The papers' parameter and multiply-add counts, exactly, and the page that shows them."""

import pytest

from tests.surgeon.reference_nets.counts import COUNTS, PAGE, Count, measured, page


@pytest.mark.parametrize("count", COUNTS, ids=str)
def test_count(count: Count) -> None:
    params, macs = measured(count)
    assert params == count.params
    assert macs == (count.macs or 0)


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()
