"""What was found is replayed, and hypothesis looks for more; it makes what it finds small."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hostile.audit import AUDIT
from hostile.test_volume import DOORS, FILES

CASES = Path(__file__).parent / "cases"
FOUND = sorted(path for path in CASES.glob("*/*") if path.is_file())
SLOW = {"identity"}


@pytest.mark.parametrize("case", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_case_that_was_found_is_refused(case, targets, audited):
    targets[case.parent.name].run(case.read_bytes())


@pytest.mark.parametrize("name", [name for name in (*DOORS, *FILES) if name not in SLOW])
def test_nothing_that_hypothesis_thinks_of_is_taken(name, targets, hostile_folder, is_soak):
    target = targets[name]

    @settings(
        max_examples=2000 if is_soak else 15, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(data=st.one_of(st.binary(max_size=300), st.randoms(use_true_random=False).map(target.make)))
    @example(data=b"")
    @example(data=target.seeds[0] * 2)
    def tried(data):
        with AUDIT.watching(hostile_folder) as seen:  # hypothesis compiles texts of its own
            target.run(data)
        assert not seen, seen

    tried()
