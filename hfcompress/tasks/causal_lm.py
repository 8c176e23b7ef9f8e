"""The name that `text_generation` had before the tasks were named after the Hub's pipeline tags, for scripts."""

from hfcompress.tasks.text_generation import CausalLM

__all__ = ["CausalLM"]
