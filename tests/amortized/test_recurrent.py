"""The recurrent encoder of padded sequences: torch's bidirectional GRU on each sequence by itself."""

import torch
from torch import nn

from pyro_vi.amortized.recurrent import Chained


def test_each_sequence_is_read_as_torch_reads_it_alone() -> None:
    torch.manual_seed(0)
    net, lengths = Chained([(3,), ()], (4, 5)).double(), [6, 2, 1]
    x, flag = torch.randn(3, 6, 3).double(), torch.randn(3, 6).double()
    theirs = []
    for inputs, layer in zip((4, 8), net.layers, strict=True):
        gru = nn.GRU(inputs, (4, 5)[len(theirs)], batch_first=True, bidirectional=True).double()
        assert isinstance(layer, nn.ModuleList)
        for part, end in zip(layer, ("", "_reverse"), strict=True):
            for name, value in part.named_parameters():
                getattr(gru, name + end).data.copy_(value.data)
        theirs.append(gru)
    seen = torch.arange(6) < torch.tensor(lengths).unsqueeze(1)
    steps, summary = net([x, flag], seen)
    for row, length in enumerate(lengths):
        value = torch.cat([x, flag.unsqueeze(-1)], -1)[row : row + 1, :length]
        for gru in theirs:
            value, ends = gru(value)
        torch.testing.assert_close(steps[row, :length], value[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(summary[row], ends[:, 0].flatten(), rtol=0, atol=1e-12)
    whole, _ = net([x[:1], flag[:1]], None)
    torch.testing.assert_close(whole[0], steps[0])


def test_a_gap_inside_of_a_sequence_does_not_end_it() -> None:
    net, x = Chained([(2,)], (3,)), torch.randn(1, 4, 2)
    gap = torch.tensor([[True, False, True, True]])
    torch.testing.assert_close(net([x], gap)[0], net([x], None)[0])
