"""Searches over settings: which trials there are, how they are run, and what became of them."""
