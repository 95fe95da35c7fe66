# asked.py FILE: keeps FILE open and does with it what each line of its input says; answers with a line each: what came of
# it, or the error's name.
import errno, fcntl, os, sys

path = sys.argv[1]
fd = os.open(path, os.O_RDWR)
end = os.open(path, os.O_WRONLY | os.O_APPEND)


def read():
    # What the kernel has of it would be no news.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return os.pread(fd, 100, 0).decode()


does = {
    'read': read,
    'write': lambda text: os.pwrite(fd, text.encode(), 0),
    'append': lambda text: os.write(end, text.encode()),
    'sync': lambda: os.fsync(fd),
    'lock': lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
    'size': lambda: os.stat(path).st_size,
}
print('ready')
for line in sys.stdin:
    what, *words = line.split()
    try:
        print(does[what](*words))
    except OSError as error:
        print(errno.errorcode[error.errno])
