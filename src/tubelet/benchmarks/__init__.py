"""Benchmarks: run a model over queries with known truth, score, compare."""
