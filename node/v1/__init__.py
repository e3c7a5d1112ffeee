"""Generated protobuf messages of the node's own protocols; the sources are in `proto/node/v1/`.

The bodies of its servicer classes raise, as gRPC's compiler writes them: they are there to be overridden, and
`tests/test_architecture.py` sees that all are.
"""
