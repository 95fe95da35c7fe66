# locks.py ONE OTHER: flock(2) and fcntl(2) locks of a file in the folder ONE and in the folder OTHER, two mounts of one
# export, exclude each other.
import fcntl, os, sys

one, other = (os.path.join(folder, 'locked') for folder in sys.argv[1:3])
open(one, 'w').close()


def is_free(path, how, start=0, length=0):
    """Whether another process gets it."""
    pid = os.fork()
    if pid == 0:
        fd = os.open(path, os.O_RDWR)
        try:
            if how in ('flock', 'shared'):
                fcntl.flock(fd, fcntl.LOCK_NB | (fcntl.LOCK_EX if how == 'flock' else fcntl.LOCK_SH))
            else:
                fcntl.lockf(fd, fcntl.LOCK_NB | fcntl.LOCK_EX, length, start)
        except BlockingIOError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


for here, there in ((one, other), (other, one)):
    # flock(2): the whole file, shared or not.
    fd = os.open(here, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert not is_free(there, 'flock') and not is_free(there, 'shared')
    fcntl.flock(fd, fcntl.LOCK_SH)
    assert not is_free(there, 'flock') and is_free(there, 'shared')
    fcntl.flock(fd, fcntl.LOCK_UN)
    assert is_free(there, 'flock')
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.close(fd)
    while not is_free(there, 'flock'):
        # Given back just after close(2).
        pass
    # fcntl(2): a part of it.
    fd = os.open(here, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 100)
    assert not is_free(there, 'fcntl', 105, 1) and is_free(there, 'fcntl', 110, 5) and is_free(there, 'fcntl', 0, 100)
    fcntl.lockf(fd, fcntl.LOCK_UN, 5, 100)
    assert is_free(there, 'fcntl', 100, 5) and not is_free(there, 'fcntl', 105, 1)
    # One that waits gets it when it is given back, and finds what was written.
    os.pwrite(fd, b'written', 0)
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(fd)
        fd = os.open(there, os.O_RDWR)
        os.write(told, b'x')
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, 100)
        os._exit(0 if os.pread(fd, 7, 0) == b'written' else 1)
    os.read(ready, 1)
    fcntl.lockf(fd, fcntl.LOCK_UN)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.pwrite(fd, bytes(7), 0)
    os.close(fd)
