"""Image files: found in folders, buckets, archives and tables, with the labels that the layout or the table gives."""
