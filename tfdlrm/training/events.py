"""What happens in training, for logs that others read: TensorBoard's, MLPerf's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum

from tfdlrm.training.checkpoint import TrainState


class Event(Enum):
    """Something that has just happened; the state that is told with it is that of the moment.

    Attributes:
        RUN_STARTS: Weights are drawn or read; training is about to begin, or to go on.
        EPOCH_STARTS: The first step of an epoch is next.
        ROUND_ENDS: Some steps are done; `round_loss` is their mean loss since the last validation or checkpoint.
        VALIDATION_STARTS: Validation rows are about to be scored.
        VALIDATION_ENDS: They were; the last entry of `history` says how well.
        EPOCH_ENDS: An epoch is over, its validation too; `epoch` is the number of epochs done.
        RUN_ENDS: There is nothing left to train.
    """

    RUN_STARTS = "run starts"
    EPOCH_STARTS = "epoch starts"
    ROUND_ENDS = "round ends"
    VALIDATION_STARTS = "validation starts"
    VALIDATION_ENDS = "validation ends"
    EPOCH_ENDS = "epoch ends"
    RUN_ENDS = "run ends"


Listener = Callable[[Event, TrainState], None]


def told_to(listeners: Sequence[Listener]) -> Listener:
    """Return a listener that tells others, in their order."""

    def tell(event: Event, state: TrainState) -> None:
        for listener in listeners:
            listener(event, state)

    return tell
