"""Run a program and note what it took: `python -I measured.py REPORT COMMAND ...`; exits as the program does.

The report is its seconds and the most memory that one of its processes had resident, in MB. Until the program takes its
place, a new process has the memory of the one that started it, and that counts: this one is small.
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
