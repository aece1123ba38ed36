"""Bytes that nobody has thought of, for whatever of the transport reads them from a network."""
