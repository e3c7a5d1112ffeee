"""What a person sees of a running node: the terminal and the log."""
