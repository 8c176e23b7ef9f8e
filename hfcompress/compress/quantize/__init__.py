"""Weights and activations as integers: 2 to 8 bits, after training or while training."""
