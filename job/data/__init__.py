"""Examples as exact batches: TFDS, records, image files, decoding, and the mirror that keeps copies."""
