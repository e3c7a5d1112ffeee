"""Every sealed sum is in one committed round of the node's lineage, still to be brought, or said to be lost."""

from node.core.round_ledger import KEPT_ENTRIES, LINEAGE_ROUNDS, Ledger


def sums(ledger):
    return [entry.sum for entry in ledger.pending]


def test_a_sum_is_pending_until_a_round_that_carried_it_commits():
    ledger = Ledger().sealed("a", 3)
    assert sums(ledger) == ["a"]

    ledger = ledger.carried("r1").committed("r1", shared=True)

    assert sums(ledger) == []
    assert ledger.lineage == ("r1",)


def test_a_dropped_rounds_sum_goes_into_the_next_beside_the_new_one():
    ledger = Ledger().sealed("a", 3).carried("dropped").sealed("b", 2)

    assert sums(ledger) == ["a", "b"]
    assert sums(ledger.carried("r1").committed("r1", shared=True)) == []


def test_a_sum_that_was_sealed_after_the_round_opened_stays_pending():
    ledger = Ledger().sealed("a", 3).carried("r1").sealed("b", 2).committed("r1", shared=True)

    assert sums(ledger) == ["b"]


def test_a_commit_that_comes_to_light_late_spends_its_sum():
    ledger = Ledger().sealed("a", 3).carried("doubtful")
    assert sums(ledger) == ["a"]

    assert sums(ledger.committed("doubtful", shared=True)) == []


def test_following_a_lineage_brings_back_what_it_does_not_carry():
    ledger = Ledger().sealed("a", 3).carried("r1").committed("r1", shared=False)

    ledger, lost = ledger.moved(("other",))

    assert (sums(ledger), lost) == (["a"], 0)
    assert ledger.lineage == ("other",)


def test_following_a_lineage_does_not_bring_again_what_it_carries():
    ledger = Ledger().sealed("a", 3).carried("doubtful").sealed("b", 2)

    ledger, lost = ledger.moved(("doubtful", "later"))

    assert (sums(ledger), lost) == (["b"], 0)


def test_a_lineage_that_was_followed_may_be_left_again():
    ledger = Ledger().sealed("a", 3).carried("doubtful")
    ledger, _ = ledger.moved(("doubtful",))
    assert sums(ledger) == []

    ledger, lost = ledger.moved(("third",))

    assert (sums(ledger), lost) == (["a"], 0)


def test_what_others_built_upon_is_let_go_and_named_if_it_is_abandoned_after_all():
    ledger = Ledger().sealed("a", 3).carried("r1").committed("r1", shared=True)
    ledger = ledger.sealed("b", 2).carried("r2").committed("r2", shared=True)
    assert [entry.sum for entry in ledger.entries] == ["b"]

    ledger, lost = ledger.moved(("other",))

    assert (sums(ledger), lost) == (["b"], 3)


def test_a_long_fork_alone_keeps_few_sums_and_counts_the_others():
    ledger = Ledger()
    for n in range(10):
        ledger = ledger.sealed(n, 1).carried(f"r{n}").committed(f"r{n}", shared=False)
    assert len(ledger.entries) == KEPT_ENTRIES

    ledger, lost = ledger.moved(("other",))

    assert sums(ledger) == [6, 7, 8, 9]
    assert lost == 10 - KEPT_ENTRIES


def test_a_sum_that_the_other_lineage_carried_is_not_lost_though_it_was_let_go_here():
    ledger = Ledger().sealed("a", 5).carried("doubtful")
    for n in range(KEPT_ENTRIES + 1):
        ledger = ledger.sealed(n, 1).carried(f"r{n}").committed(f"r{n}", shared=False)
    assert "a" not in [entry.sum for entry in ledger.entries]

    _, lost = ledger.moved(("doubtful",))

    assert lost == 1  # the first of the numbered ones; "a" is behind the other's bits


def test_out_of_view_nothing_is_counted_twice():
    ledger = Ledger().sealed("a", 3).carried("r1").committed("r1", shared=False).sealed("b", 2)

    ledger, lost = ledger.moved(tuple(f"x{n}" for n in range(LINEAGE_ROUNDS)))

    assert sums(ledger) == ["b"]  # was in no round at all: certainly not in theirs
    assert lost == 3


def test_what_lies_before_a_fork_is_shared_though_the_other_lineage_no_longer_shows_it():
    ledger = Ledger()
    for round in ("r1", "r2", "r3"):
        ledger = ledger.sealed(round, 1).carried(round).committed(round, shared=False)
    ledger = ledger.sealed("doubtful", 1).carried("x").sealed("new", 1)

    ledger, lost = ledger.moved(("r2", "x"))

    assert (sums(ledger), lost) == (["r3", "new"], 0)


def test_any_number_of_sums_that_another_lineage_does_not_carry_stays_to_be_brought():
    ledger = Ledger()
    for number in range(KEPT_ENTRIES + 3):
        ledger = ledger.sealed(number, 1)
    ledger = ledger.carried("dropped")

    ledger, lost = ledger.moved(("other",))

    assert (sums(ledger), lost) == (list(range(KEPT_ENTRIES + 3)), 0)


def test_a_loss_is_told_once():
    ledger = Ledger().sealed("a", 3).carried("r1").committed("r1", shared=True).committed("r2", shared=True)

    ledger, lost = ledger.moved(("other",))
    assert lost == 3

    assert ledger.moved(("third",))[1] == 0


def test_a_round_does_not_carry_what_was_spent_before_it():
    ledger = Ledger().sealed("a", 3).carried("r1").committed("r1", shared=False).carried("r2")

    ledger, _ = ledger.moved(("r2",))

    assert sums(ledger) == ["a"]
