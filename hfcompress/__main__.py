"""`python -m hfcompress`: the form that accelerate launch starts."""

from hfcompress.cli import main

main()
