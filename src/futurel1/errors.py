"""Errors that a user can act on: each says what was given, where, and what to do."""


class FutureL1Error(Exception):
    """Base of every error that `futurel1` raises on purpose; the command line shows it as one line."""


class ConfigError(FutureL1Error, ValueError):
    """An invalid setting or combination of settings."""


class CheckpointError(FutureL1Error, ValueError):
    """A checkpoint, tokenizer or configuration that does not suit its use."""


class BatchError(FutureL1Error, ValueError):
    """Tensors of a batch that contradict each other."""


class RecordError(FutureL1Error, ValueError):
    """A data record that cannot be used; names the file, the record number, the field, the value and the remedy."""


class MediaError(FutureL1Error, ValueError):
    """An image or video file that exists but cannot be read."""


class MissingFileError(FutureL1Error, FileNotFoundError):
    """A file or folder that a record, a setting or a command names is not there."""


class DiskFullError(FutureL1Error, OSError):
    """No space left on a disk or in a quota; says which file could not be written, and what is whole."""


class RemoteError(FutureL1Error, OSError):
    """A store or web server that refuses, does not answer, or sends something else than was asked for."""
