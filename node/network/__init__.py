"""The only room that knows hivemind: its DHT, its identities and its streams."""
