"""Half precision where it is requested, or chosen by the device."""

import torch

from datafree.torch_utils.precision import found_precision


def test_auto_is_bf16_where_the_device_computes_with_it(monkeypatch):
    cpu = torch.device("cpu")
    for able, amp in (
        ({"avx512_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "avx2": True}, "off"),
        ({}, "off"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert found_precision("auto", cpu) == amp
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in early versions of torch
    assert found_precision("auto", cpu) == "off"
    assert [found_precision(amp, cpu) for amp in ("off", "bf16", "fp16")] == ["off", "bf16", "fp16"]
