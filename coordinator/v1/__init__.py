"""Generated protobuf messages of the coordinator's protocol; the source is `proto/coordinator/v1/coordinator.proto`.

The bodies of its servicer classes raise, as gRPC's compiler writes them: they are there to be overridden, and
`tests/test_architecture.py` sees that all are.
"""
