"""How much of what the code decides is held by the tests: mutmut over four groups of modules, with their fast tests."""
