"""Which sums go where when lineages part and meet again."""

from node.core.round_ledger import KEPT_ENTRIES, LINEAGE_ROUNDS, Ledger


def pending(ledger):
    return [entry.sum for entry in ledger.pending]


def test_a_dropped_rounds_sum_is_carried_by_the_next():
    ledger = Ledger().sealed("a", 10).carried("r1").sealed("b", 5)

    assert pending(ledger) == ["a", "b"]
    ledger = ledger.carried("r2").committed("r2", shared=True)
    assert pending(ledger) == []
    assert ledger.lineage == ("r2",)


def test_a_sum_sealed_after_the_round_opened_is_not_spent_by_it():
    ledger = Ledger().sealed("a", 10).carried("r1").sealed("b", 5).committed("r1", shared=True)

    assert pending(ledger) == ["b"]


def test_sums_of_abandoned_rounds_come_back_and_those_behind_the_new_bits_do_not():
    ledger = Ledger().sealed("a", 10).carried("in doubt")
    ledger = ledger.sealed("b", 5).carried("mine").committed("mine", shared=False)

    ledger, lost = ledger.moved(("in doubt", "theirs"))

    assert pending(ledger) == ["b"]
    assert lost == 0
    assert ledger.lineage == ("in doubt", "theirs")


def test_a_lone_fork_that_was_longer_than_what_is_kept_says_what_it_lost():
    ledger = Ledger()
    for index in range(KEPT_ENTRIES + 3):
        ledger = ledger.sealed(index, 10).carried(f"r{index}").committed(f"r{index}", shared=False)

    ledger, lost = ledger.moved(("other",))

    assert pending(ledger) == list(range(3, KEPT_ENTRIES + 3))
    assert lost == 30


def test_rounds_before_the_fork_are_not_reported_as_lost():
    ledger = Ledger()
    rounds = [f"r{index}" for index in range(LINEAGE_ROUNDS + 10)]
    for index, round in enumerate(rounds):
        ledger = ledger.sealed(index, 10).carried(round).committed(round, shared=True)
    theirs = (*rounds, *(f"x{index}" for index in range(20)))[-LINEAGE_ROUNDS:]

    ledger, lost = ledger.moved(theirs)

    assert lost == 0
    assert pending(ledger) == []


def test_a_round_with_others_lets_earlier_sums_go():
    ledger = Ledger().sealed("a", 1).carried("r1").committed("r1", shared=False)
    assert len(ledger.entries) == 1

    ledger = ledger.sealed("b", 1).carried("r2").committed("r2", shared=True)

    assert [entry.sum for entry in ledger.entries] == ["b"]
