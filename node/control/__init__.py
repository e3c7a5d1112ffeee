"""The local API through which the commands talk to a running node."""
