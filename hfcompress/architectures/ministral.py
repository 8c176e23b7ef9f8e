"""Ministral, as MinistralForCausalLM: Mistral with a window in some layers (Ministral-8B-Instruct-2410)."""

from dataclasses import replace

from hfcompress.architectures.mistral import MISTRAL

MINISTRAL = replace(
    MISTRAL, name="Ministral", model_type="ministral", class_name="MinistralForCausalLM", genai="mistral"
)
