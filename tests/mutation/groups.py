"""Which modules are mutated, and which fast tests have to notice."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Modules that are mutated together, since the same tests concern them."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]
    """Files, or tests of a file; whatever is marked `swarm` or `e2e` is left out."""
    without: tuple[str, ...] = ()
    """Tests that take seconds and find nothing that the others do not."""


GROUPS = {
    "store": Group(
        modules=("node/training/checkpoint.py", "node/training/saver.py", "node/core/files.py"),
        tests=(
            "tests/training/test_checkpoint.py",
            "tests/training/test_checkpoint_refusals.py",
            "tests/training/test_saver.py",
            "tests/core/test_files.py",
            "tests/training/test_crash.py",
        ),
        without=(
            "tests/training/test_crash.py::test_killing_with_9_at_any_moment_of_a_save_loses_and_tears_no_checkpoint",
            "tests/training/test_crash.py::test_without_the_rename_torn_checkpoints_are_seen",
            "tests/training/test_crash.py::test_without_a_generation_before_lost_checkpoints_are_seen",
            "tests/training/test_crash.py::test_a_flipped_bit_in_any_file_is_found_before_use",
        ),
    ),
    "machine": Group(
        modules=(
            "node/core/round_calls.py",
            "node/core/round_ends.py",
            "node/core/round_exchange.py",
            "node/core/round_ledger.py",
            "node/core/round_messages.py",
            "node/core/round_shares.py",
            "node/core/round_state.py",
            "node/core/round_step.py",
            "node/core/deadline.py",
            "node/core/progress.py",
        ),
        tests=(
            "tests/core/test_round_calls.py",
            "tests/core/test_round_ends.py",
            "tests/core/test_round_exchange.py",
            "tests/core/test_round_refusals.py",
            "tests/core/test_round_ledger.py",
            "tests/core/test_round_shares.py",
            "tests/core/test_round_stages.py",
            "tests/core/test_deadline.py",
            "tests/core/test_progress.py",
        ),
    ),
    "reduce": Group(
        modules=("node/averaging/reduce.py", "node/averaging/exchange.py", "node/averaging/guard.py"),
        tests=("tests/averaging/test_reduce_and_guard.py", "tests/averaging/test_exchange.py"),
    ),
    "guards": Group(
        modules=(
            "node/network/frames.py",
            "node/network/records.py",
            "node/network/round_words.py",
            "node/network/activations.py",
            "node/averaging/patience.py",
            "node/averaging/watch.py",
            "node/trust/seal.py",
        ),
        tests=(
            "tests/network/test_frames.py",
            "tests/network/test_records.py",
            "tests/network/test_round_wire.py",
            "tests/network/test_activations.py",
            "tests/averaging/test_patience.py",
            "tests/averaging/test_watch.py",
            "tests/trust/test_identity.py",
        ),
    ),
}
