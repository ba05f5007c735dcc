"""The end of an artefact's graph, which differs by task and head."""

import numpy as np
from onnx import helper, numpy_helper

from medimg.export.graph import HEAD, OUTPUT, Chain
from medimg.runtime.tasks import Head


def add_end(steps: Chain, head: Head, units: int) -> int:
    """Add what makes probabilities of the last layer's outputs.

    Args:
        steps: what follows them; nothing is added where they are probabilities already.
        head: what the last layer gives.
        units: how many.

    Returns:
        How many columns the probabilities have.
    """
    if head == "logits" and units > 1:
        steps.add("Softmax", axis=1)
    elif head == "logits":
        steps.add("Sigmoid")
    if head == "sigmoid" or (head == "logits" and units == 1):
        _add_columns(steps, steps.last)
        return 2
    return units


def _add_columns(steps: Chain, final: str) -> None:
    complement = f"{HEAD}complement"
    steps.constants.append(numpy_helper.from_array(np.array(1, np.float32), f"{HEAD}one"))
    steps.nodes.append(helper.make_node("Sub", [f"{HEAD}one", final], [complement], name=complement))
    steps.nodes.append(
        helper.make_node("Concat", [complement, final], [OUTPUT], name=f"{HEAD}columns", axis=1)
    )
