"""What a model takes on a phone, on this machine, and on a microcontroller."""
