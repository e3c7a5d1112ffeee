"""The nouns, the errors, the events and the pure state machines. Imports the standard library only."""
