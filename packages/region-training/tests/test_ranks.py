import os
import subprocess
import sys

JOIN = """
import sys, torch
from region_training.ranks import join_ranks
before = torch.get_num_threads()
join_ranks("cpu", 60, num_workers=int(sys.argv[1]))
print("threads", before, torch.get_num_threads())
"""


def joined_threads(num_workers, **variables):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | variables
    command = [sys.executable, "-c", JOIN, str(num_workers)]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    before, after = output.rsplit("threads ", 1)[1].split()
    return int(before), int(after)


def test_data_workers_get_cores_of_their_own_but_never_the_last_one():
    cores, threads = joined_threads(1)
    assert threads == max(cores - 1, 1)
    assert joined_threads(10_000) == (cores, 1)


def test_the_users_own_number_of_threads_stays():
    assert joined_threads(1, OMP_NUM_THREADS="2") == (2, 2)
