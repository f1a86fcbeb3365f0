"""The data set of `make demo`: drawn, so that it needs no network. It is outside the program."""
