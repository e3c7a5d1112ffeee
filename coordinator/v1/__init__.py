"""Generated protobuf messages of the coordinator's protocol; the source is `proto/coordinator/v1/coordinator.proto`."""
