"""The labs against the clock and against their peers; benchmarks/README.md says what is measured
and how.
"""
