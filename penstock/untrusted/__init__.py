"""Model files that somebody else wrote: what is believed of them, decided from their bytes before any library reads
them.

Pure. The worker's engines and the builder's steps stand on the same readers, so that a file which one of them refuses
is refused by the other.
"""
