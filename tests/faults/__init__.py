"""Faults on demand: one injector for tests inside a process and for real daemons.

Two kinds of named points, both generated from the code:

* `durable.py`: every step that changes the disk, e.g. `training.checkpoint:_write_synced:fsync`;
* `protocol.py`: every step of a round and every word of it, e.g. `Exchange.reduce`, `RoundTransport.send:Vote`.

Inside a process:

    with injected(Fault("Exchange.reduce", "fail"), protocol_steps()) as injector: ...
    with injected(Fault("RoundTransport.send:Vote", "corrupt", nth=2, where=lambda t: t is bad.transport), ...): ...

In a real daemon (`faults.daemon` is `python -m node` with a file of faults, which nothing in `node` reads):

    Node(home, "start", ..., faults=[Fault("training.checkpoint:CheckpointStore.save:rename", "kill")])
"""
