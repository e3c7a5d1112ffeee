"""A pytest plugin for runs on thousands of mutants: few examples of each property, always the same, cheap tests first."""

import json
import os
from pathlib import Path

from hypothesis import Phase, settings

NUM_EXAMPLES = 12
SUSPICIOUS, USAGE_ERROR = 35, 4


def pytest_collection_modifyitems(items):
    """Let the cheapest tests come first: most mutants die of one of them, and the others need not be run."""
    stats = Path("mutmut-stats.json")  # of the run without a mutant
    seconds = json.loads(stats.read_text())["duration_by_test"] if stats.exists() else {}
    items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))
    for item in items:
        test = getattr(item, "obj", None)
        if getattr(test, "is_hypothesis_test", False):
            # a decorator of its own may not be put over another one: this is where both leave their settings
            own = getattr(test, "_hypothesis_internal_use_settings", settings())
            test._hypothesis_internal_use_settings = settings(
                own,
                max_examples=min(own.max_examples, NUM_EXAMPLES),
                phases=(Phase.explicit, Phase.generate),  # that it fails is enough: no smaller example is looked for
                derandomize=True,
                database=None,
                deadline=None,
            )


def pytest_sessionfinish(exitstatus):
    """Do not let mutmut take it for a kill that a test was not found (as when its parameters were an iterator)."""
    if exitstatus == USAGE_ERROR:
        os._exit(SUSPICIOUS)
