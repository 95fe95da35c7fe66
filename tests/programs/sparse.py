# sparse.py FILE SIZE: a file of SIZE bytes, more than there is memory or disk, that is written and read in places.
import mmap, os, random, sys

path, size = sys.argv[1], int(sys.argv[2])
chance = random.Random(size)
fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
os.ftruncate(fd, size)
assert os.fstat(fd).st_size == size
places = sorted({chance.randrange(0, size >> 20) << 20 for _ in range(40)} | {0, size - 4096})
data = {at: chance.randbytes(4096) for at in places}
for at, page in data.items():
    assert os.pwrite(fd, page, at) == 4096
os.fsync(fd)
os.close(fd)
fd = os.open(path, os.O_RDWR)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
for at, page in data.items():
    assert os.pread(fd, 4096, at) == page, at
    assert os.pread(fd, 4096, max(at - (512 << 10), 0)) in (bytes(4096), data.get(max(at - (512 << 10), 0))), at
# Where there is something is found without reading it all.
found, at = [], 0
while at < size:
    try:
        at = os.lseek(fd, at, os.SEEK_DATA)
    except OSError:
        break
    found.append(at)
    at = os.lseek(fd, at, os.SEEK_HOLE)
assert found == places, (found, places)
window = mmap.mmap(fd, 1 << 20, offset=places[20])
assert window[:4096] == data[places[20]] and window[8192:12288] == bytes(4096)
window[8192:8196] = b'here'
window.flush()
window.close()
assert os.pread(fd, 4, places[20] + 8192) == b'here'
assert os.stat(path).st_blocks * 512 < 8 << 20, os.stat(path)
os.ftruncate(fd, size + 1)
assert os.pread(fd, 4097, size - 4096) == data[size - 4096] + b'\0'
