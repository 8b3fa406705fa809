"""Groups of one size: every row once, in its order, whatever the number of rows."""

import pytest
import torch
from torch import Tensor

from vcinr_batch.row_groups import GROUP_ROWS, in_groups


@pytest.mark.parametrize("count", [1, 4, 5, 7, 8, 13])
def test_a_function_sees_groups_of_one_size_only(count: int) -> None:
    seen: list[int] = []

    def double(rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return 2 * rows[:, :, None]

    rows = torch.arange(3.0 * count).reshape(count, 3)
    assert torch.equal(in_groups(double, rows, 4), 2 * rows[:, :, None])
    assert seen == [4] * -(-count // 4)


def test_no_rows_give_what_the_function_makes_of_none() -> None:
    assert in_groups(lambda rows: rows[:, :2], torch.empty(0, 3, dtype=torch.float64)).shape == (0, 2)


@pytest.mark.parametrize("columns", [1, 5, 96, 2701])
def test_a_matrix_product_has_the_same_bits_in_any_company(columns: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    matrix = torch.randn(64, columns, generator=generator)
    rows = torch.randn(3 * GROUP_ROWS + 1, 64, generator=generator)
    whole = in_groups(lambda part: part @ matrix, rows)
    torch.testing.assert_close(whole, rows @ matrix, rtol=0, atol=1e-4)
    for size in range(1, len(rows) + 1):
        chosen = torch.randperm(len(rows), generator=generator)[:size]
        assert torch.equal(in_groups(lambda part: part @ matrix, rows[chosen]), whole[chosen])
