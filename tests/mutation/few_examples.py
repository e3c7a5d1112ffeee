"""A pytest plugin for runs on thousands of mutants: few examples of each property, always the same, after all else."""

from hypothesis import settings

NUM_EXAMPLES = 12


def pytest_collection_modifyitems(items):
    """Let single cases come first: most mutants die of one, and the properties need not be run."""
    for item in items:
        test = getattr(item, "obj", None)
        if getattr(test, "is_hypothesis_test", False):
            # a decorator of its own may not be put over another one: this is where both leave their settings
            own = getattr(test, "_hypothesis_internal_use_settings", settings())
            test._hypothesis_internal_use_settings = settings(
                own, max_examples=min(own.max_examples, NUM_EXAMPLES), derandomize=True, database=None, deadline=None
            )
    items.sort(key=lambda item: getattr(getattr(item, "obj", None), "is_hypothesis_test", False))
