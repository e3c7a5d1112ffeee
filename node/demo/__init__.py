"""The demonstration: two real nodes on this machine, driven and watched from outside like any others."""
