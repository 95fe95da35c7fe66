# watch.py FOLDER: inotify(7) tells a program of what happens through the same mount.
import ctypes, os, struct, sys

folder = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.inotify_init1(os.O_CLOEXEC)
MODIFY, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x2, 0x8, 0x40, 0x80, 0x100, 0x200
assert libc.inotify_add_watch(fd, folder.encode(), MODIFY | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE) >= 0

a, b = os.path.join(folder, 'a'), os.path.join(folder, 'b')
with open(a, 'w') as file:
    file.write('text')
os.rename(a, b)
os.unlink(b)
expected = [(CREATE, 'a'), (MODIFY, 'a'), (CLOSE_WRITE, 'a'), (MOVED_FROM, 'a'), (MOVED_TO, 'b'), (DELETE, 'b')]
told = []
while len(told) < len(expected):
    data = os.read(fd, 4096)
    while data:
        _, mask, _, length = struct.unpack_from('iIII', data)
        told.append((mask, data[16:16 + length].rstrip(b'\0').decode()))
        data = data[16 + length:]
assert told == expected, told
