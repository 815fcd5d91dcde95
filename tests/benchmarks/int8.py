"""Static int8 as the toolchains' own documentation makes it: what binary layers are set beside."""

from __future__ import annotations

from pathlib import Path

import torch


def int8_pte(module: torch.nn.Module, x: torch.Tensor, path: Path) -> Path:
    """PT2E with the XNNPACK quantizer, per channel, calibrated on `x`."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False))
    prepared = prepare_pt2e(torch.export.export(module, (x,)).module(), quantizer)
    prepared(x)
    program = torch.export.export(convert_pt2e(prepared), (x,))
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path.write_bytes(edge.to_executorch().buffer)
    return path


def int8_tflite(fp32: Path, x: torch.Tensor, path: Path) -> Path:
    """ai-edge-quantizer's static int8 recipe, calibrated on `x`."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    (signature,) = Interpreter(model_path=str(fp32)).get_signature_list()
    made = quantizer.Quantizer(str(fp32), recipe.static_wi8_ai8())
    calibrated = made.calibrate({signature: [{"args_0": x.numpy()}]})
    made.quantize(calibrated).export_model(str(path), overwrite=True)
    return path
