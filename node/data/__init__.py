"""From the owner's files to packed microbatches."""
