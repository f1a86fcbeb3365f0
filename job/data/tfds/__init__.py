"""Data sets of TensorFlow Datasets: found, judged, and read from their record files."""
