"""Four deep-vision labs in a compact package, held to their report by a pytest suite."""

__version__ = "0.1.0"
