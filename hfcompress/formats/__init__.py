"""The files of runtimes: written, opened, checked against what they were made from."""
