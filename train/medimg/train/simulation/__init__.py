"""Simulated images, for the demo and the tests."""
