"""The recipe that all peers agree on, and the settings that only this machine knows."""
