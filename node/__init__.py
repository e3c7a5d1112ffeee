"""A Potluck node: the daemon that trains its shard of a model and averages with its replicas."""
