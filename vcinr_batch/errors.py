"""Every exception that this package raises on purpose. Catch `VcinrError` to catch them all."""


class VcinrError(Exception):
    """Base class. The message is one line that names what was expected, what came, and where."""

    def __str__(self) -> str:
        # KeyError, one of the bases below, would print the repr of its message.
        return str(self.args[0]) if self.args else ""


class ConfigError(VcinrError, ValueError):
    """The configuration is wrong: names the key, the value and what is allowed."""


class SourceError(VcinrError, OSError):
    """A source cannot be read or holds no usable data: names the URL, the variable or the sample."""


class StoreUnavailableError(SourceError):
    """The store did not answer properly, though asked again, or it refused the credentials: names URL and cause.

    Nothing is known to be wrong with the data: run again later, never reject samples for it.
    """


class DamagedSourceError(SourceError):
    """Bytes of a source arrived but do not decode (truncated file, bad chunk): names the URL."""


class FittingError(VcinrError, RuntimeError):
    """A fit or a training run left the finite numbers: names the sample keys or the step."""


class BitstreamError(VcinrError, ValueError):
    """Bytes that do not decode."""


class TruncatedBitstreamError(BitstreamError):
    """Bytes are missing at the end: fetch them again."""


class CorruptBitstreamError(BitstreamError):
    """Bytes fail their checksum or contradict their own structure: this row, part or file is lost."""


class UnsupportedFormatError(VcinrError, ValueError):
    """Written in a format version that this package does not read: names both versions."""


class BundleMismatchError(VcinrError, ValueError):
    """The bundle is not the one that the archive or the source needs: names both sides."""


class SampleNotFoundError(VcinrError, KeyError):
    """No such sample: names the key or selection and the extent of the archive."""


class ArchiveExistsError(VcinrError, FileExistsError):
    """The output is already there: resume, overwrite or take another URL."""
