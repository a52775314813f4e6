"""Models that end their process, as a crash or the lack of memory does."""

from __future__ import annotations

import os
import signal
import time

from tfdlrm.models.dlrm import DLRM


class Killed(DLRM):
    """A model whose training is killed in its second round, as the kernel kills for memory."""

    rounds = 0

    def fit(self, *args, **kwargs):
        self.rounds += 1
        if self.rounds == 1:
            return super().fit(*args, **kwargs)
        time.sleep(1)  # what is spent is noted twice a second
        os.kill(os.getpid(), signal.SIGKILL)
