"""Command line, runs, optimizers, schedules, exact resume, throughput."""
