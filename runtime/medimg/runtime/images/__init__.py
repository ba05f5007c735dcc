"""Bytes on disk to the uint8 array that a network takes."""
