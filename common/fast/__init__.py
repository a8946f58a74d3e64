"""Less work for the same numbers (padding, memory, shards), and how much work there is."""
