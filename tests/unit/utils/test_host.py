import pytest
import torch

from psy_agents_noaug.utils.host import on_host, to_device

META = torch.device("meta")


def test_what_was_copied_to_a_device_is_known_on_the_host():
    value = torch.arange(3)
    assert on_host(to_device(value, META)) is value


def test_on_the_host_nothing_is_copied():
    value = torch.arange(3)
    assert to_device(value, torch.device("cpu")) is value
    assert on_host(value) is value


def test_what_was_made_on_a_device_is_read_from_it():
    with pytest.raises(NotImplementedError, match="meta"):
        on_host(to_device(torch.arange(3), META) + 1)
