"""What a run must be so that another engine can be handed its model: everything that can be said before loading."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from sq.checkpoint.export.scheme import activation_arguments, pair_obstacle, weight_arguments
from sq.errors import QuantizationError
from sq.formats.format import Format
from sq.formats.labels import Bits

LIBRARY = "compressed_tensors"


def export_obstacles(
    kind: str,
    save_to: Path | None,
    bits: Bits,
    weights: Format | None,
    activations: Format | None,
    *,
    clip: float | str,
    head_groups: bool,
    method: str,
    method_obstacle: str | None,
    measures_speed: bool,
) -> Iterator[str]:
    """Why a run cannot be exported, a sentence each, with the nearest recipe that can.

    Args:
        kind: the value of `export`, for the messages.
        bits, weights, activations: the label, and its formats with their schemes and groups; None for 16 bits.
        clip: of activations.
        head_groups: whether the features of each head share a scale at `o`.
        method, method_obstacle: its name, and why what it leaves to run time cannot be said.
        measures_speed: whether the run measures packed layers.
    """
    given = f"export={kind}"
    if save_to is None:
        yield f"{given} needs a folder to write to: add save_to=FOLDER"
    if find_spec(LIBRARY) is None:
        yield f"{given} needs the library compressed-tensors: pip install 'singlequant[export]'"
    if weights is None:
        yield f"{given}: {bits.label} leaves weights in 16 bits; set bits=w4a4, w4a8 or w4a16"
    for format, arguments in ((weights, weight_arguments), (activations, activation_arguments)):
        try:
            if format is not None:
                arguments(format)
        except QuantizationError as error:
            yield f"{given}: {error}"
    if weights is not None and (reason := pair_obstacle(weights, activations)) is not None:
        yield f"{given}: {reason}"
    if activations is not None and clip != 1.0:
        yield f"{given}: activations.clip={clip}: the format has no field for clips; set activations.clip=1.0"
    if activations is not None and head_groups:
        yield f"{given}: activations.o_group=head has no place in the format; set activations.o_group=null"
    if bits.quantizes_attention:
        yield (
            f"{given}: {bits.label} quantizes inside attention; engines have FP8 keys and values alone, with scales of "
            f"their own; set bits={Bits(bits.weights, bits.activations).short}"
        )
    if method_obstacle is not None:
        yield f"{given}: method={method}: {method_obstacle}"
    if measures_speed:
        yield f"{given} writes the fake model, task=speed measures packed layers; make two runs"
