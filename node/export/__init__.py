"""What leaves the swarm as files that other programs read."""
