"""The `potluck` command: one small file a verb, free of torch until a verb needs it."""
