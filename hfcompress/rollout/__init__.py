"""Whether a model may replace another: recorded requests, replay, shadow, A/B tests."""
