"""Gives every convolution of a traced program a weight of its own, for those who fold batch norms into it.

Surprising: a detector's tower has one set of convolutions for several stages and batch norms for each. ExecuTorch 1.5.1 and
torchao 0.18 fold a batch norm by changing the weight in place, so with a shared one all stages but the last answer wrongly (scores
5 % of the largest off). torch's ONNX translator makes new weights and needs none of this. It costs the bytes of the copies, which
folding makes necessary anyway.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import fx, nn

CONVOLUTIONS = (torch.ops.aten.conv2d.default, torch.ops.aten.convolution.default)


def unshared(module: Any) -> Any:
    """Changes the module of a `torch.export.ExportedProgram` in place and returns it."""
    uses: dict[str, list[tuple[fx.Node, fx.Node]]] = defaultdict(list)
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in CONVOLUTIONS:
            for held in dict.fromkeys(node.all_input_nodes):
                if held.op == "get_attr":
                    uses[str(held.target)].append((held, node))
    for name, places in uses.items():
        for number, (held, node) in enumerate(places[1:], 1):
            own = f"{name.replace('.', '_')}_of_use_{number}"
            copied = module.get_parameter(name).detach().clone()
            module.register_parameter(own, nn.Parameter(copied, requires_grad=False))
            with module.graph.inserting_before(node):
                placed = module.graph.get_attr(own)
            placed.meta = dict(held.meta)
            node.replace_input_with(held, placed)
    module.recompile()
    return module
