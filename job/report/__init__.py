"""The report of a finished run: its values, the page, the model card, the exported files, and the closing table."""
