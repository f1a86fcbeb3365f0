"""Thaw: one idempotent Kubernetes Job that fine-tunes a pre-trained image classifier."""

__version__ = "0.2.0"
