"""The checksums of copies and of files in memory: every changed bit changes them."""

import pytest
import torch

from armillary.train.checkpoint.pieces import CHECKSUMS
from armillary.train.engines.parallel import checksum


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 9])
def test_a_changed_bit_of_a_tensor_changes_its_checksum_at_any_place(offset, size):
    values = torch.randn(offset + size)[offset:]
    before = checksum(values)
    assert before.dtype == torch.int64 and before.shape == ()
    for place in range(size):
        for bit in (0, 20, 31):
            word = values.view(torch.int32)[place]
            word ^= 1 << bit if bit < 31 else -(1 << 31)
            assert checksum(values) != before, (place, bit)
            word ^= 1 << bit if bit < 31 else -(1 << 31)
    assert checksum(values) == before == checksum(values.clone())


def test_a_scalar_and_a_transposed_tensor_have_checksums():
    assert checksum(torch.tensor(3.0)) == torch.tensor(3.0).view(torch.int32)
    matrix = torch.randn(3, 5)
    assert checksum(matrix.T) == checksum(matrix.T.contiguous())


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 4096, 4099])
def test_a_changed_bit_of_a_file_changes_its_checksum(size, tmp_path):
    path = tmp_path / "file"
    data = bytearray(b"\x5a" * size)
    path.write_bytes(data)
    before = CHECKSUMS["sum64"](path)
    for place in {0, size // 2, size - 1} if size else ():
        data[place] ^= 4
        path.write_bytes(data)
        assert CHECKSUMS["sum64"](path) != before
        data[place] ^= 4
    path.write_bytes(data)
    assert CHECKSUMS["sum64"](path) == before
