"""The exception tree: one base, one line, and the built-in kinds that callers expect."""

import pickle

import pytest

from vcinr_batch import errors
from vcinr_batch.errors import VcinrError

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, VcinrError)]


@pytest.mark.parametrize(
    ("name", "also"),
    [
        ("ConfigError", ValueError),
        ("SourceError", OSError),
        ("StoreUnavailableError", errors.SourceError),
        ("DamagedSourceError", errors.SourceError),
        ("FittingError", RuntimeError),
        ("BitstreamError", ValueError),
        ("TruncatedBitstreamError", errors.BitstreamError),
        ("CorruptBitstreamError", errors.BitstreamError),
        ("UnsupportedFormatError", ValueError),
        ("BundleMismatchError", ValueError),
        ("SampleNotFoundError", KeyError),
        ("ArchiveExistsError", FileExistsError),
    ],
)
def test_each_error_is_ours_and_of_a_built_in_kind(name: str, also: type[Exception]) -> None:
    assert issubclass(getattr(errors, name), VcinrError)
    assert issubclass(getattr(errors, name), also)


@pytest.mark.parametrize("kind", ALL)
def test_the_text_is_the_message_without_quotes(kind: type[VcinrError]) -> None:
    assert str(kind("t2m[time=2019]: not here")) == "t2m[time=2019]: not here"
    assert str(kind()) == ""


@pytest.mark.parametrize("kind", ALL)
def test_errors_travel_between_processes(kind: type[VcinrError]) -> None:
    back = pickle.loads(pickle.dumps(kind("why")))
    assert type(back) is kind
    assert str(back) == "why"
