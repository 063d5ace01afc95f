"""One thread for each test process, and for those it starts: nets are small, and threads would wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

from command import cli, images  # noqa: F401 - fixtures of several files
