# open_files.py FOLDER: what a program may do with files that it has open: renamed over, removed, mapped, and with holes.
import errno, mmap, os, sys

os.chdir(sys.argv[1])
PAGE = mmap.PAGESIZE


def make(name, data):
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    assert os.write(fd, data) == len(data)
    return fd


def read(name):
    with open(name, 'rb') as file:
        return file.read()


# Renamed over: who has the old file open keeps it, mapping and all, and who opens the name has the new one.
old, new = make('a', b'old' * PAGE), make('b', b'new')
mapped = mmap.mmap(old, 3 * PAGE)
os.rename('b', 'a')
assert read('a') == b'new' and os.pread(old, 6, 0) == b'oldold' and mapped[:3] == b'old'
mapped[:3] = b'OLD'
mapped.flush()
assert os.pread(old, 3, 0) == b'OLD' and read('a') == b'new'
assert os.fstat(old).st_nlink == 0 and os.fstat(new).st_nlink == 1
assert os.fstat(new).st_ino == os.stat('a').st_ino

# Removed: it is read, written, grown, mapped and synced, and the name is another's.
os.unlink('a')
assert not os.path.exists('a')
other = make('a', b'other')
os.ftruncate(new, 2 * PAGE)
gone = mmap.mmap(new, 2 * PAGE)
gone[PAGE:PAGE + 4] = b'gone'
gone.flush()
os.fsync(new)
assert os.pread(new, 4, PAGE) == b'gone' and read('a') == b'other'
os.unlink('a')

# Mapped privately: what is stored there is nobody else's. Shared: it is the file's at once, for every descriptor here.
fd = make('c', bytes(4 * PAGE))
private = mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE)
shared = mmap.mmap(fd, 0, flags=mmap.MAP_SHARED)
private[:4] = b'mine'
shared[PAGE:PAGE + 4] = b'ours'
assert os.pread(fd, 4, 0) == bytes(4) and os.pread(fd, 4, PAGE) == b'ours' == private[PAGE:PAGE + 4]
assert os.pwrite(fd, b'file', 2 * PAGE) == 4 and shared[2 * PAGE:2 * PAGE + 4] == b'file'
shared.flush()
assert read('c')[PAGE:PAGE + 4] == b'ours'
os.close(fd)
shared[3 * PAGE:3 * PAGE + 4] = b'late'
shared.close()
# There is no descriptor any more: the last page was written when the mapping went.
assert read('c')[3 * PAGE:] == b'late' + bytes(PAGE - 4)
os.unlink('c')

# Holes: made by writing past the end and by punching, found by lseek(2), and they take no room.
MIB = 1 << 20
fd = make('d', os.urandom(MIB))
os.pwrite(fd, b'end', 8 * MIB)
os.fsync(fd)
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16


def fallocate(mode, start, length):
    done = libc.fallocate(fd, mode, ctypes.c_long(start), ctypes.c_long(length))
    return 0 if done == 0 else ctypes.get_errno()


assert os.lseek(fd, 0, os.SEEK_HOLE) == MIB and os.lseek(fd, MIB, os.SEEK_DATA) == 8 * MIB
before = os.fstat(fd).st_blocks
assert fallocate(PUNCH_HOLE | KEEP_SIZE, MIB // 4, MIB // 2) == 0
assert os.pread(fd, MIB // 2, MIB // 4) == bytes(MIB // 2)
assert os.lseek(fd, 0, os.SEEK_HOLE) == MIB // 4 and os.lseek(fd, MIB // 4, os.SEEK_DATA) == 3 * MIB // 4
assert os.fstat(fd).st_blocks <= before - MIB // 2 // 512, (os.fstat(fd).st_blocks, before)
try:
    raise AssertionError(os.lseek(fd, 9 * MIB, os.SEEK_DATA))
except OSError as error:
    assert error.errno == errno.ENXIO
os.posix_fallocate(fd, 0, MIB)
assert os.fstat(fd).st_blocks >= before and os.fstat(fd).st_size == 8 * MIB + 3
# Kept at its size, room is made beyond the end.
assert fallocate(KEEP_SIZE, 8 * MIB, MIB) == 0 and os.fstat(fd).st_size == 8 * MIB + 3
assert fallocate(ZERO_RANGE, 0, MIB // 4) in (0, errno.EOPNOTSUPP)
os.close(fd)
os.unlink('d')
assert os.listdir('.') == [], os.listdir('.')
