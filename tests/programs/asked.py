# asked.py FILE [alone]: keeps FILE open, to append, too, unless alone, and does with it what each line of its input says;
# answers with a line each: what came of it, or the error's name.
import errno, fcntl, os, sys

path = sys.argv[1]
fd = os.open(path, os.O_RDWR)
end = None if 'alone' in sys.argv[2:] else os.open(path, os.O_WRONLY | os.O_APPEND)


def read():
    # What the kernel has of it would be no news.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return os.pread(fd, 100, 0).decode()


# What is changed goes by names in here: nothing has to be asked on the way to them.
os.chdir(os.path.dirname(path))
entries = None


def list_some(count):
    # The next entries of the directory, which stays open.
    global entries
    entries = entries or os.scandir('.')
    return ' '.join(entry.name for _, entry in zip(range(int(count)), entries))


does = {
    'read': read,
    'write': lambda text: os.pwrite(fd, text.encode(), 0),
    'at': lambda offset, text: os.pwrite(fd, text.encode(), int(offset)),
    'append': lambda text: os.write(end, text.encode()),
    'sync': lambda: os.fsync(fd),
    'lock': lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
    'size': lambda: os.stat(path).st_size,
    'mkdir': lambda name: os.mkdir(name),
    'rmdir': lambda name: os.rmdir(name),
    'unlink': lambda name: os.unlink(name),
    'rename': lambda name, to: os.rename(name, to),
    'link': lambda name, to: os.link(name, to),
    'symlink': lambda name: os.symlink('target', name),
    'exclusive': lambda name: os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
    'create': lambda name: os.close(os.open(name, os.O_CREAT | os.O_WRONLY)),
    'chmod': lambda name: os.chmod(name, 0o600),
    'list': list_some,
    'names': lambda: len(os.listdir('.')),
}
print('ready')
for line in sys.stdin:
    what, *words = line.split()
    try:
        print(does[what](*words))
    except OSError as error:
        print(errno.errorcode[error.errno])
