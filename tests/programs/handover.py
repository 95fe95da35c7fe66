# handover.py ONE OTHER SEED COUNT: one file in two mounts, which is read, written, mapped, truncated, punched and copied
# within in one of them, COUNT times, and handed over to the other now and then by msync(2), fsync(2) and an open.
# Descriptors and mappings are open all along on both sides: none may show what is old.
import ctypes, mmap, os, random, sys

ROOM, PAGE = 1 << 18, mmap.PAGESIZE
folders, seed, count = sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4])
libc = ctypes.CDLL(None, use_errno=True)
paths = [os.path.join(folder, 'f') for folder in folders]
chance = random.Random(seed)
model = bytearray()


class Side:
    def __init__(self, path):
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self.fd, ROOM)
        self.map = mmap.mmap(self.fd, ROOM)
        self.reader = os.open(path, os.O_RDONLY)
        self.reads = mmap.mmap(self.reader, ROOM, prot=mmap.PROT_READ)
        os.ftruncate(self.fd, 0)

    def reopen(self):
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR)


sides = [Side(path) for path in paths]


def part():
    """A part of the file."""
    start = chance.randrange(len(model) + 1)
    return start, chance.randrange(min(len(model) - start, 1 << 16) + 1)


def read(side):
    start, length = part()
    got = os.pread(chance.choice((side.fd, side.reader)), length + 10, start)
    is_same(got, start, min(length + 10, len(model) - start))


def map_read(side):
    start, length = part()
    is_same(chance.choice((side.map, side.reads))[start:start + length], start, length)


def write(side):
    start = chance.randrange(min(len(model) + 3 * PAGE, ROOM))
    data = chance.randbytes(chance.randrange(min(ROOM - start, 1 << 16)) + 1)
    assert os.pwrite(side.fd, data, start) == len(data)
    put(start, data)


def map_write(side):
    start, length = part()
    data = chance.randbytes(length)
    side.map[start:start + length] = data
    put(start, data)


def append(side):
    data = chance.randbytes(chance.randrange(100))
    if len(model) + len(data) <= ROOM:
        # An append goes past the pages of this mount: what was stored in a mapping has to be there before.
        fd = os.open(side.path, os.O_WRONLY | os.O_APPEND)
        assert os.write(fd, data) == len(data)
        os.close(fd)
        put(len(model), data)


def truncate(side):
    length = chance.randrange(ROOM)
    os.ftruncate(side.fd, length)
    model[length:] = bytes(max(0, length - len(model)))


def punch(side):
    start, length = part()
    if length > 0:
        assert libc.fallocate(side.fd, 3, ctypes.c_long(start), ctypes.c_long(length)) == 0, ctypes.get_errno()
        put(start, bytes(length))


def copy(side):
    start, length = part()
    to = chance.randrange(ROOM - length)
    if length == 0 or start < to + length and to < start + length:
        return
    done = os.copy_file_range(side.fd, side.fd, length, start, to)
    put(to, bytes(model[start:start + done]))


def sync(side):
    chance.choice((os.fsync, os.fdatasync))(side.fd)


def put(start, data):
    model.extend(bytes(max(0, start - len(model))))
    model[start:start + len(data)] = data


def is_same(got, start, length):
    expected = bytes(model[start:start + length])
    if got != expected:
        at = next((n for n in range(min(len(got), length)) if got[n] != expected[n]), min(len(got), length))
        raise AssertionError(f'seed {seed}, operation {operation}: byte {start + at} of {len(model)} is not what it was made, '
                             f'{len(got)} of {length} bytes from {start}')


KINDS = [read] * 6 + [map_read] * 6 + [write] * 6 + [map_write] * 6 + [append, truncate, punch, copy, sync, Side.reopen]
now = 0
for operation in range(count):
    side = sides[now]
    chance.choice(KINDS)(side)
    assert os.fstat(side.fd).st_size == len(model), (seed, operation, os.fstat(side.fd).st_size, len(model))
    if chance.randrange(8) == 0:
        side.map.flush()
        os.fsync(side.fd)
        now = 1 - now
        side = sides[now]
        os.close(os.open(side.path, chance.choice((os.O_RDONLY, os.O_RDWR))))
        assert os.fstat(side.fd).st_size == len(model), (seed, operation)
        is_same(os.pread(side.reader, ROOM, 0), 0, len(model))
        is_same(side.reads[:len(model)], 0, len(model))
