"""Where a file meets its users: types, layouts and names of inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

from lq.checks import check_flag
from lq.export.formats.litert.orders import CHANNELS_LAST
from lq.export.formats.litert.tensors import Tensors, Value

FLOAT32, INT8 = "float32", "int8"
_IMAGE = 4


@dataclass(frozen=True)
class Ends:
    """What goes in and comes out.

    Args:
        int8_inputs: integers go in rather than floats.
        int8_outputs: integers come out.
        channels_last: images have their channels last.

    Example:
        >>> ends = Ends.of(inputs="int8", outputs="float32", channels_last=True)
        >>> ends
        Ends(int8_inputs=True, int8_outputs=False, channels_last=True)
        >>> ends.order(4), ends.order(2)
        ((0, 2, 3, 1), (0, 1))
    """

    int8_inputs: bool = False
    int8_outputs: bool = False
    channels_last: bool = False

    @classmethod
    def of(cls, inputs: str, outputs: str, channels_last: bool) -> Ends:
        """From options of an exporter.

        Raises:
            TypeError: if the flag is neither True nor False.
            ValueError: on a type that is neither "float32" nor "int8".
        """
        check_flag("channels_last", channels_last)
        for name, dtype in (("inputs", inputs), ("outputs", outputs)):
            if dtype not in (FLOAT32, INT8):
                raise ValueError(f"{name}={dtype!r} must be {FLOAT32!r} or {INT8!r}.")
        return cls(inputs == INT8, outputs == INT8, channels_last)

    def order(self, rank: int) -> tuple[int, ...]:
        """In which order the dimensions of an input or output lie."""
        return CHANNELS_LAST[_IMAGE] if self.channels_last and rank == _IMAGE else tuple(range(rank))

    def leaving(self, net: Tensors, value: Value, name: str) -> int:
        """The file tensor of an output."""
        placed = net.ordered(value, self.order(len(net.shape(value))))
        if not self.int8_outputs:
            return net.real(placed).tensor
        if net.grid(placed) is None:
            raise ValueError(
                f"outputs='int8': output {name!r} is not rounded to integers in the training, so it can only be "
                "float32; write outputs='float32', or let the model end with a quantized layer."
            )
        return placed.tensor
