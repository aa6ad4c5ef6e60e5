# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads objects that no cache has, through the Python package; see python.rs.

Arguments: masters, name of the cluster, number of threads. Oids come in hexadecimal, one per line.
Prints: p50, p99 and CPU time per load of one thread; loads per second and CPU time per load of
all threads; time per load from the cache, and per look-up in a dictionary that copies the same bytes.
Times are in microseconds.
"""

import sys
import threading
import time

from neo.client.Storage import Storage

clock, cpu = time.perf_counter, time.process_time
masters, name, threads = sys.argv[1:]
oids = [bytes.fromhex(line) for line in sys.stdin]
storage = Storage(master_nodes=masters, name=name, compress=False, cache_size=0)
load, before = storage.loadBefore, b'\x7f' + b'\xff' * 7
for oid in oids[:100]:
    load(oid, before)

latencies = []
cpu_start = cpu()
for oid in oids:
    start = clock()
    load(oid, before)
    latencies.append(clock() - start)
used = cpu() - cpu_start
latencies.sort()
print(latencies[len(latencies) // 2] * 1e6, latencies[len(latencies) * 99 // 100] * 1e6,
      used * 1e6 / len(oids))


def work(index):
    for oid in oids[index::int(threads)]:
        load(oid, before)


workers = [threading.Thread(target=work, args=(i,)) for i in range(int(threads))]
start, cpu_start = clock(), cpu()
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
print(len(oids) / (clock() - start), (cpu() - cpu_start) * 1e6 / len(oids))
storage.close()

storage = Storage(master_nodes=masters, name=name, compress=False, cache_size='64MB')
oids = oids[:1000]
blocks = {oid: bytearray(storage.loadBefore(oid, before)[0]) for oid in oids}


def hits():
    for oid in oids:
        storage.loadBefore(oid, before)


def copies():
    for oid in oids:
        bytes(blocks[oid])


def nothing():
    for oid in oids:
        pass


def best(function):
    """Shortest time: what else runs on the machine only adds."""
    times = []
    for _ in range(100):
        start = clock()
        function()
        times.append(clock() - start)
    return min(times) * 1e6 / len(oids)


loop = best(nothing)
print(best(hits) - loop, best(copies) - loop)
storage.close()
