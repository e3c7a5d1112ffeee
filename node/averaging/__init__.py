"""Averaging rounds between the replicas of a stage: all or nothing, bit for bit."""
