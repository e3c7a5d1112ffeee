"""The engine thread, the optimizer, evaluation and checkpoints."""
