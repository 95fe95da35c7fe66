"""unasked.py PID FILE: while the daemon PID of its mount is stopped, opens, reads and closes FILE, which was read before.

A try may come too late for what the kernel knows of the file, so there are some; one that asks the daemon waits until it
goes on.
"""
import os, signal, sys, threading

daemon, name = int(sys.argv[1]), sys.argv[2]


def try_once():
    late = threading.Event()

    def go_on():
        late.set()
        os.kill(daemon, signal.SIGCONT)

    with open(name, "rb") as file:
        whole = file.read()
    watch = threading.Timer(3, go_on)
    os.kill(daemon, signal.SIGSTOP)
    watch.start()
    try:
        for _ in range(9):
            fd = os.open(name, os.O_RDONLY)
            assert os.read(fd, 9) == whole[:9]
            os.close(fd)
    finally:
        watch.cancel()
        os.kill(daemon, signal.SIGCONT)
    return not late.is_set()


assert any(try_once() for _ in range(5)), "the daemon was asked each time"
