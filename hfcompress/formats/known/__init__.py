"""One object per format (see formats/format.py); formats/__init__.py lists them."""
