"""One thread per test process: small networks on several fight for cores and crawl."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported
