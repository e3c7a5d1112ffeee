"""Who this node is, and whose word counts."""
