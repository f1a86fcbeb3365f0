"""What the manifests promise, row by row, in a real cluster."""
