import pytest
import torch

from lm_eval_hybrid.backends.kvcache import Columns


@pytest.mark.parametrize("last", [0, 1, 5, 100])
def test_columns_are_those_of_concatenation(last: int) -> None:
    """Over many sizes of steps, with rows dropped on the way."""
    generator = torch.Generator().manual_seed(last)
    kept = {30: [2, 0, 4, 1], 31: [3, 0, 1], 80: [2, 0]}
    columns, expected = Columns(last), torch.empty(6, 2, 0, 3)
    for step in range(120):
        new = torch.randn(len(expected), 2, 1 + 40 * (step % 7 == 0), 3, generator=generator)
        expected = torch.cat([expected, new], dim=-2)
        value = columns.append(new)
        if step in kept:
            rows = torch.tensor(kept[step])
            value, expected = columns.keep(rows), expected[rows]
        wanted = expected[..., -last:, :]
        assert torch.equal(value[..., -wanted.shape[-2] :, :], wanted)
        if last == 0:
            assert value.shape == expected.shape


def test_forgotten_columns_take_no_room() -> None:
    columns = Columns(last=8)
    for _ in range(2000):
        columns.append(torch.zeros(1, 1, 4))
    assert columns.value.untyped_storage().nbytes() < 200 * 4 * 4


def test_a_new_column_copies_no_old_one() -> None:
    columns = Columns()
    columns.append(torch.zeros(2, 100, 4))
    places = {columns.append(torch.zeros(2, 1, 4)).data_ptr() for _ in range(64)}
    assert len(places) == 1
