"""Microbatches on their way through the stages: driving one's own, serving others'."""
