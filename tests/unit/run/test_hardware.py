from types import SimpleNamespace

import pytest

from psy_agents_noaug.training.hardware import Hardware


@pytest.mark.parametrize(
    ("device", "mode", "packed", "configured", "trained", "predicted"),
    [
        ("cpu", "off", False, None, 1024, 1024),
        ("cpu", "off", True, None, 1024, 1024),
        ("cpu", "bf16", False, None, 1024, 1024),
        ("cpu", "bf16", True, None, 4096, 4096),
        ("cpu", "bf16", True, 256, 256, 256),
        ("cuda", "bf16", True, None, 16384, 65536),
        ("cuda", "off", False, None, 16384, 65536),
        ("cuda", "bf16", True, 256, 256, 256),
    ],
)
def test_batches_are_cut_as_the_hardware_likes_them_unless_configured(
    device, mode, packed, configured, trained, predicted
):
    distributed = SimpleNamespace(device=SimpleNamespace(type=device))
    hardware = Hardware(distributed, SimpleNamespace(mode=mode), {}, configured)
    assert hardware.micro_batch_tokens(packed=packed) == trained
    assert hardware.eval_tokens(packed=packed) == predicted
