"""A run pushed to the Hub with its evidence, and a pushed one verified."""
