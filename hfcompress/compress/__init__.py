"""Stages that change weights: distillation, pruning, factorization, embeddings, quantization."""
