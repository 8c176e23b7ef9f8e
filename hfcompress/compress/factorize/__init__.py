"""Layers as low-rank factors."""
