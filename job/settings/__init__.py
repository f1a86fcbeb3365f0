"""What a person says of a run: every variable, its bounds, where it came from, and the machine that it is for."""
