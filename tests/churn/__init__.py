"""A swarm whose nodes are killed and started at random, and how much of what it could compute it counts."""
