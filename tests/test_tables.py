"""The table of counted faults in tests/README.md has a row for every case, and nothing was lost."""

from __future__ import annotations

from tests.faults.count import cases, rows, words


def test_every_fault_case_has_its_row_in_the_table():
    *found, total = rows()
    assert found == [*map(words, cases())]
    assert total.startswith("all, in the ")


def test_the_table_says_that_every_case_was_run_and_nothing_was_lost():
    for case, (runs, lost, half) in rows().items():
        assert int(runs.replace(",", "")) > 0, case
        assert (lost, half) == ("0", "0"), case
