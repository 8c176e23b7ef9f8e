"""Bytes, time and memory predicted from shapes, before any weight is touched."""
