"""Generated protobuf messages of the node's own protocols; the sources are in `proto/node/v1/`."""
