"""What reading a zip archive that somebody else wrote may raise (pure)."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from typing import Final

DAMAGED: Final = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,  # a way of packing that Python does not know
    RuntimeError,  # a member under a password
    struct.error,
    OverflowError,
    EOFError,
    OSError,
    UnicodeDecodeError,
)
"""Everything that `zipfile` raises for an archive that is none, is damaged, or is packed in a way that it cannot.

But for offsets that lie nowhere: those are ValueError, as is much else."""
