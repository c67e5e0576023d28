import pytest
import torch

from lm_eval_hybrid.models.kv_cache import CacheColumns, Grid, Residuals

CPU = torch.device("cpu")


def test_rows_that_grow_at_different_paces() -> None:
    """Compared with lists: rows advance, rewind, are replaced, dropped and duplicated."""
    generator = torch.Generator().manual_seed(0)
    grid, expected = Grid(4), [torch.empty(2, 0, 3) for _ in range(4)]
    for step in range(80):
        n = 1 + 40 * (step % 9 == 0)
        new = torch.randn(len(expected), 2, n, 3, generator=generator)
        grid.write(new, CacheColumns.after([row.shape[1] for row in expected], n, CPU))
        expected = [torch.cat(pair, dim=1) for pair in zip(expected, new, strict=True)]
        back = torch.randint(0, n + 1, (len(expected),), generator=generator).tolist()
        expected = [row[:, : row.shape[1] - some] for row, some in zip(expected, back, strict=True)]
        if step == 30:
            expected[1] = torch.randn(2, 5, 3, generator=generator)
            grid.write(expected[1][None], CacheColumns.after([0], 5, CPU, rows=[1]))
        if step in (40, 60):
            kept = {40: [2, 0, 1], 60: [1, 1]}[step]
            grid.select(torch.tensor(kept))
            expected = [expected[i] for i in kept]
        end = max(row.shape[1] for row in expected)
        for row, wanted, all_rows in zip(range(len(expected)), expected, grid.read(None, end), strict=True):
            assert torch.equal(all_rows[:, : wanted.shape[1]], wanted)
            assert torch.equal(grid.read(torch.tensor([row]), end)[0, :, : wanted.shape[1]], wanted)


def test_appending_seldom_copies_the_buffer() -> None:
    grid = Grid(2)
    grid.write(torch.zeros(2, 1, 100, 4), CacheColumns.after([0, 0], 100, CPU))
    addresses = set()
    for length in range(100, 160):
        grid.write(torch.zeros(2, 1, 1, 4), CacheColumns.after([length, length - 50], 1, CPU))
        addresses.add(grid.read(None, length + 1).data_ptr())
    assert len(addresses) == 1


@pytest.mark.parametrize(("reach", "ahead"), [(0, 4), (1, 4), (1, 1), (5, 3), (40, 4)])
def test_residuals_within_reach_are_kept(reach: int, ahead: int) -> None:
    generator = torch.Generator().manual_seed(reach)
    residuals, expected = Residuals(3, reach, ahead), [torch.empty(0, 2) for _ in range(3)]
    prompts = [torch.randn(n, 2, generator=generator) for n in (50, 1, 7)]
    for slots in ([0, 2], [1]):
        new = torch.nn.utils.rnn.pad_sequence([prompts[slot] for slot in slots], batch_first=True, padding_value=9.0)
        residuals.write(
            new, CacheColumns.after([0] * len(slots), new.shape[1], CPU, slots), [len(prompts[s]) for s in slots]
        )
    expected = list(prompts)
    for step in range(60):
        new = torch.randn(len(expected), ahead, 2, generator=generator)
        counts = torch.randint(0, ahead + 1, (len(expected),), generator=generator).tolist()
        cells = CacheColumns.after([len(row) for row in expected], ahead, CPU)
        residuals.write(new, cells, counts)
        read = [torch.cat([row, part[:count]]) for row, part, count in zip(expected, new, counts, strict=True)]
        # A window may end at any column that was just read.
        for row, (before, whole) in enumerate(zip(expected, read, strict=True)):
            for end in range(len(before), len(whole)):
                columns = torch.arange(max(0, end + 1 - reach) if reach else 0, end + 1)
                assert torch.equal(residuals.read(torch.tensor([row]), columns[None])[0], whole[columns])
        stay = [int(torch.randint(0, count + 1, (), generator=generator)) for count in counts]
        expected = [whole[: len(row) + n] for row, whole, n in zip(expected, read, stay, strict=True)]
        if step == 30:
            residuals.select(torch.tensor([2, 0]))
            expected = [expected[2], expected[0]]


def test_old_residuals_are_overwritten() -> None:
    residuals = Residuals(1, reach=8, ahead=4)
    for length in range(2000):
        residuals.write(torch.zeros(1, 1, 4), CacheColumns.after([length], 1, CPU), [1])
    buffers = [value for value in vars(residuals).values() if isinstance(value, torch.Tensor)]
    assert sum(buffer.untyped_storage().nbytes() for buffer in buffers) < 20 * 4 * 4
