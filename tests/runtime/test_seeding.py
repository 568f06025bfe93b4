"""Random streams: their seeds by hand, and the numbers that come out of them."""

import hashlib
import json

import numpy as np
import pytest
import torch

from qcsbm.runtime.seeding import derive, generator, global_generator, permutation

ADDRESSES = [(0,), (1,), (0, "batch"), (0, "batch", 1), (1, "batch", 1), (0, "times", 1)]


def by_hand(seed, *address):
    """The first 63 bits of the SHA-256 of the address, as JSON."""
    text = json.dumps([seed, *address])
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) >> (256 - 63)


def test_seed_of_a_stream_is_its_address_hashed():
    seeds = [derive(*address) for address in ADDRESSES]
    assert seeds == [by_hand(*address) for address in ADDRESSES]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    assert derive(0, "batch", 1) == 6132077235673127339


def test_streams_begin_at_their_seed():
    expected = torch.randn(5, generator=torch.Generator().manual_seed(by_hand(3, "noise", 7)))
    assert torch.equal(torch.randn(5, generator=generator(3, "noise", 7)), expected)
    order = permutation(9, 3, "epoch", 7)
    expected = np.random.default_rng(by_hand(3, "epoch", 7)).permutation(9)
    assert list(order) == list(expected) and sorted(order) == list(range(9))


def test_the_global_generator_begins_the_stream_and_is_then_where_it_was():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    with pytest.raises(KeyError), global_generator(torch.device("cpu"), 3, "init", 7):
        drawn = torch.randn(5)
        raise KeyError
    assert torch.equal(torch.random.get_rng_state(), before)
    expected = torch.randn(5, generator=torch.Generator().manual_seed(by_hand(3, "init", 7)))
    assert torch.equal(drawn, expected)
