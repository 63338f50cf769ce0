"""Recurrent layers step by step, of linear layers and what is between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = tuple[Tensor, ...]
Step = Callable[..., State]


def _lstm_step(given: Tensor, kept: Tensor, hidden: Tensor, cell: Tensor) -> State:
    entry, forget, new, out = (given + kept).chunk(4, -1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(entry) * torch.tanh(new)
    return torch.sigmoid(out) * torch.tanh(cell), cell


def _gru_step(given: Tensor, kept: Tensor, hidden: Tensor) -> State:
    (reset, update, new), (kept_reset, kept_update, kept_new) = given.chunk(3, -1), kept.chunk(3, -1)
    new = torch.tanh(new + torch.sigmoid(reset + kept_reset) * kept_new)
    return (new + torch.sigmoid(update + kept_update) * (hidden - new),)


def _tanh_step(given: Tensor, kept: Tensor, hidden: Tensor) -> State:
    return (torch.tanh(given + kept),)


def _relu_step(given: Tensor, kept: Tensor, hidden: Tensor) -> State:
    return (torch.relu(given + kept),)


_STEPS: Mapping[str, Step] = {"lstm": _lstm_step, "gru": _gru_step, "rnn_tanh": _tanh_step, "rnn_relu": _relu_step}


def _layer(name: str) -> Callable[..., Any]:
    """``torch.lstm`` and its like, of tensors that are not packed.

    Source:
        https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html, and GRU and RNN there.
    """
    step = _STEPS[name]

    def run(
        x: Tensor,
        start: Any,
        weights: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...]:
        states, ends = start if isinstance(start, tuple) else (start,), []
        x, directions = x.transpose(0, 1) if batch_first else x, 1 + bidirectional
        count = len(weights) // (num_layers * directions)
        for layer in range(num_layers):
            outputs = []
            for number in range(layer * directions, (layer + 1) * directions):
                own = weights[number * count : (number + 1) * count]
                made, end = _direction(step, x, tuple(state[number] for state in states), own, number % directions == 1)
                outputs.append(made)
                ends.append(end)
            x = torch.cat(outputs, -1) if bidirectional else outputs[0]
            if dropout > 0 and train and layer + 1 < num_layers:
                x = F.dropout(x, dropout)
        last = tuple(torch.stack(parts) for parts in zip(*ends, strict=True))
        return x.transpose(0, 1) if batch_first else x, *last

    return run


def _direction(step: Step, x: Tensor, state: State, weights: Sequence[Tensor], reverse: bool) -> tuple[Tensor, State]:
    """All steps of one layer in one direction, and the state behind the last."""
    of_input, of_hidden, *biases = weights
    bias, hidden_bias = biases or (None, None)
    given, outputs = F.linear(x, of_input, bias), []
    for t in range(len(x)):
        state = step(given[len(x) - 1 - t if reverse else t], F.linear(state[0], of_hidden, hidden_bias), *state)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if reverse else outputs), state


def _cell(name: str) -> Callable[..., Any]:
    """``torch.lstm_cell`` and its like: one step."""
    step = _STEPS[name]

    def run(x: Tensor, start: Any, *weights: Any) -> Any:
        states = start if isinstance(start, (tuple, list)) else (start,)
        of_input, of_hidden, bias, hidden_bias = (*weights, None, None)[:4]
        made = step(F.linear(x, of_input, bias), F.linear(states[0], of_hidden, hidden_bias), *states)
        return made if len(made) > 1 else made[0]

    return run


RECURRENT: Mapping[Any, Callable[..., Any]] = {
    **{getattr(torch, name): _layer(name) for name in _STEPS},
    **{getattr(torch, f"{name}_cell"): _cell(name) for name in _STEPS},
}


def has_steps(func: Any, *args: Any) -> bool:
    """Whether a recurrent call is one that is known step by step: nothing packed, and no projection of the state.

    Example:
        >>> has_steps(torch.gru_cell, torch.ones(1, 2), torch.ones(1, 2))
        True
    """
    if func.__name__.endswith("_cell"):
        return True
    if len(args) != 9 or not isinstance(args[3], bool):
        return False
    _, _, weights, has_biases, num_layers, _, _, bidirectional, _ = args
    return bool(len(weights) == (4 if has_biases else 2) * num_layers * (1 + bidirectional))


def steps_of(func: Any, args: Any) -> int:
    """How many steps a call takes; 1 for cells.

    Example:
        >>> steps_of(torch.gru_cell, ())
        1
    """
    return 1 if func.__name__.endswith("_cell") else int(args[0].shape[1 if args[8] else 0])
