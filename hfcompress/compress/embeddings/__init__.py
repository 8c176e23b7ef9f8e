"""Embedding tables in fewer bytes, and vocabularies cut to what is used."""
