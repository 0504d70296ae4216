"""Database rows and blobs of the farm: knows digests, not plans."""
