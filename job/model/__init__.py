"""The classifier: backbones, head, augmentation, folding, and the exported form."""
