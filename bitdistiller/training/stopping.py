"""A run that is asked to stop writes a checkpoint first.

Batch systems and spot machines send SIGTERM some time before they take a machine away. The step that is being computed
is finished, a checkpoint written, and training ends; all processes of a run stop after the same step, whichever was
asked.
"""

import signal
from threading import current_thread, main_thread

from transformers import TrainerCallback

from bitdistiller.training import processes


class StopAtSignal(TrainerCallback):
    """Ends training with a checkpoint after the step in which SIGTERM came; ``stopped`` tells whether it did."""

    def __init__(self) -> None:
        self.stopped, self._asked, self._before = False, False, None

    def on_train_begin(self, args, state, control, **kwargs):
        if current_thread() is main_thread():  # signals reach no other
            self._before = signal.signal(signal.SIGTERM, self._ask)

    def on_step_end(self, args, state, control, **kwargs):
        if processes.on_any(self._asked) and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, *_) -> None:
        self._asked = True
