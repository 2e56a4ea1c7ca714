"""Files that are whole, carry a checksum, and have one writer."""
