"""Mutation testing: small changes of the package, and whether the suite notices each of them."""
