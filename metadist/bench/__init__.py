"""Measuring: the engine, sampling and memory; the way to the server and back, and more workers; planning with both."""
