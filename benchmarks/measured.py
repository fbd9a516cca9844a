"""Run a program and report its time and memory: `python -I measured.py REPORT COMMAND ...`; exits with its status.

The report holds its seconds and the peak resident memory of its largest process in MB. A new process starts with the
memory of the one that forked it, which counts towards that peak; so a small program does the measuring.
"""

import os
import sys
import time

started = time.perf_counter()
process = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(process, 0)
seconds = time.perf_counter() - started
with open(sys.argv[1], "w") as report:
    report.write(f"{seconds} {usage.ru_maxrss / (1e6 if sys.platform == 'darwin' else 1e3)}")
sys.exit(os.waitstatus_to_exitcode(status))
