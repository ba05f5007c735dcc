"""Structured compression of chains of convolutions and dense layers."""
