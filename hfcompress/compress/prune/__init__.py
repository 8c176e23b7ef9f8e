"""Pruning of heads, neurons, channels and residual dimensions: the result is physically smaller."""
