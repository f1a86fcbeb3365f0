"""The train step and its loop, the state of a phase, the optimizer, the numbers of an evaluation."""
