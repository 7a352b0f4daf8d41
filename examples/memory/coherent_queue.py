"""A ring between two hosts whose caches the program itself keeps coherent.

    python coherent_queue.py                                    every flush and invalidate in its place: it works
    python coherent_queue.py --leave-out flush-message          one of them left out: it fails
    python coherent_queue.py --mode hardware --leave-out all    all of them left out: nothing is missed

Two processes stand for the hosts; each sees the shared segment through a cache of its own. What each host writes has
lines of its own: the tail (messages sent) is the producer's, the head (messages taken) the consumer's.
"""

from __future__ import annotations

import argparse
import struct
import subprocess
import sys
import time

from emucxl.coherence import LINE_BYTES, Cache, Coherence
from emucxl.shared_memory import SharedSegment

MESSAGES, SLOTS = 1000, 8
MESSAGE = struct.Struct("16Q")  # two lines
INDEX = struct.Struct("Q")
TAIL, HEAD, FIRST_SLOT = 0, LINE_BYTES, 2 * LINE_BYTES
SIZE_BYTES = FIRST_SLOT + SLOTS * MESSAGE.size

STEPS = (
    "invalidate-head",
    "flush-message",
    "flush-tail",
    "invalidate-tail",
    "invalidate-message",
    "flush-head",
)


class WaitedInVainError(SystemExit):
    """The other host's index never came: that host waits in vain too, or will."""


class Host:
    """One side of the ring."""

    def __init__(self, name: str, cache: Cache, left_out: str, timeout_s: float) -> None:
        self.name, self.cache, self.left_out, self.timeout_s = name, cache, left_out, timeout_s

    def invalidate(self, what: str, offset: int, size: int) -> None:
        if self.left_out not in ("all", f"invalidate-{what}"):
            self.cache.invalidate(offset, size)

    def flush(self, what: str, offset: int, size: int) -> None:
        if self.left_out not in ("all", f"flush-{what}"):
            self.cache.flush(offset, size)

    def wait_for(self, what: str, offset: int, wanted: int) -> None:
        """Until the other host's index is at least `wanted`."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            self.invalidate(what, offset, INDEX.size)
            (seen,) = INDEX.unpack(self.cache.read(INDEX.size, offset))
            if seen >= wanted:
                return
            if time.monotonic() > deadline:
                raise WaitedInVainError(
                    f"{self.name}: waited {self.timeout_s:g} s for the {what}: saw {seen}, expected {wanted}"
                )
            time.sleep(20e-6)

    def publish(self, what: str, offset: int, value: int) -> None:
        self.cache.write(INDEX.pack(value), offset)
        self.flush(what, offset, INDEX.size)


def words_of(number: int) -> tuple[int, ...]:
    return tuple((number + 1) * 1_000_003 + word for word in range(16))


def slot_of(number: int) -> int:
    return FIRST_SLOT + number % SLOTS * MESSAGE.size


def produce(host: Host) -> None:
    for number in range(MESSAGES):
        host.wait_for("head", HEAD, max(number + 1 - SLOTS, 0))
        host.cache.write(MESSAGE.pack(*words_of(number)), slot_of(number))
        host.flush("message", slot_of(number), MESSAGE.size)
        host.publish("tail", TAIL, number + 1)


def consume(host: Host) -> None:
    for number in range(MESSAGES):
        host.wait_for("tail", TAIL, number + 1)
        host.invalidate("message", slot_of(number), MESSAGE.size)
        words = MESSAGE.unpack(host.cache.read(MESSAGE.size, slot_of(number)))
        if words != words_of(number):
            sys.exit(f"{host.name}: stale bytes in message {number}: begins with {words[0]}")
        host.publish("head", HEAD, number + 1)


def new_host(segment: SharedSegment, name: str, options: argparse.Namespace) -> Host:
    return Host(name, Cache(segment, Coherence[options.mode.upper()]), options.leave_out, options.timeout)


def run_both(segment: SharedSegment, options: argparse.Namespace) -> None:
    consumer = new_host(segment, "consumer", options)
    consumer.cache.read(
        INDEX.size, TAIL
    )  # before anything is sent: what was cached then is stale from then on
    command = [sys.executable, __file__, *sys.argv[1:], "--producer", str(segment.fd)]
    producer = subprocess.Popen(command, pass_fds=[segment.fd], stdout=subprocess.PIPE)
    try:
        assert producer.stdout is not None
        producer.stdout.readline()  # it is there: from here on, waiting means waiting for bytes
        consume(consumer)
        if producer.wait(options.timeout) != 0:
            sys.exit(1)
    except WaitedInVainError:
        producer.wait(2 * options.timeout + 1)  # and says so
        raise
    finally:
        consumer.cache.close()
        producer.kill()
        producer.communicate()
    print(f"{MESSAGES} messages arrived whole and in order")


def main() -> None:
    parser = argparse.ArgumentParser(description="A ring between two hosts with caches of their own.")
    parser.add_argument("--mode", choices=[mode.name.lower() for mode in Coherence], default="software")
    parser.add_argument("--leave-out", choices=["nothing", "all", *STEPS], default="nothing")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds to wait for the other host")
    parser.add_argument("--producer", type=int, help=argparse.SUPPRESS)  # the segment's descriptor
    options = parser.parse_args()
    if options.producer is None:
        with SharedSegment.create("ring", SIZE_BYTES) as segment:
            run_both(segment, options)
    else:
        with SharedSegment.attach(options.producer, SIZE_BYTES) as segment:
            print("ready", flush=True)
            producer = new_host(segment, "producer", options)
            with producer.cache:
                produce(producer)


if __name__ == "__main__":
    main()
