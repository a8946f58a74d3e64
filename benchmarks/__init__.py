"""The harness: reads every paper.yaml, checks its facts, runs its claims, compares and reports."""
