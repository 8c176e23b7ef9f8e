"""Folders on disk: what strangers made is checked before it is read, what is made here is written whole."""
