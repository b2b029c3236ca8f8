"""Measuring: the engine against its peers, what sampling costs, what memory it takes."""
