from typing import Any

import numpy as np
import pytest

from vcinr_batch.data.samples import Sample, SampleKey, rejection_reason
from vcinr_batch.errors import SourceError

KEY = SampleKey("t2m", (("time", "2019-03-22T06:00:00"), ("level", "850")))


def sample(values: Any, mask: Any = None) -> Sample:
    values = np.array(values, np.float32)[:, None]
    return Sample(KEY, (0,), np.zeros((len(values), 2), np.float32), values, None if mask is None else np.array(mask))


def test_a_key_has_one_text_form() -> None:
    assert str(KEY) == "t2m[time=2019-03-22T06:00:00,level=850]"
    assert str(SampleKey("t2m")) == "t2m"


@pytest.mark.parametrize(
    ("values", "mask", "reason"),
    [
        ([1, 2], None, None),
        ([1, np.inf], None, "1 infinite value"),
        ([-np.inf, np.inf], [True, True], "2 infinite values"),
        ([1, np.inf], [True, False], None),
        ([1, 2], [False, False], "no value at all"),
        ([1, 2], [False, True], None),
    ],
)
def test_a_sample_is_rejected_for_a_reason(values: Any, mask: Any, reason: str | None) -> None:
    assert rejection_reason(sample(values, mask)) == reason


@pytest.mark.parametrize(
    ("coordinates", "values", "mask"), [((2, 3), (3, 1), None), ((3, 3), (3,), None), ((3, 3), (3, 1), (2,))]
)
def test_values_coordinates_and_mask_belong_together(coordinates: Any, values: Any, mask: Any) -> None:
    with pytest.raises(SourceError, match=r"t2m\[time="):
        Sample(
            KEY,
            (0,),
            np.zeros(coordinates, np.float32),
            np.zeros(values, np.float32),
            None if mask is None else np.ones(mask, bool),
        )
