"""Fakes, fault injection and contract tests. No Ray."""
