# renames.py SECONDS PROCESSES FOLDER..: processes that move, replace, exchange, link, make, remove, list and read names in one
# small tree at once, in these folders, which are mounts of one. Whatever they do, a file's text is its own, what nobody
# removes is there in the end, and no call fails but as it may on a local disk.
import ctypes, errno, os, random, sys, time

seconds, processes, folders = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
libc = ctypes.CDLL(None, use_errno=True)
DIRS, NAMES, KEPT = 6, 12, 40
# The last: a link to a directory.
MAY = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.EPERM}
EXCHANGE, NOREPLACE, AT_FDCWD = 2, 1, -100


def places(top):
    return [os.path.join(top, f'd{n}') for n in range(DIRS)]


def renameat2(old, new, flags):
    if libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), 'renameat2')


def text_of(path):
    with open(path, 'rb') as file:
        return file.read()


def is_whole(text):
    # What was just made may be empty still.
    return text == b'' or text[:8] * (len(text) // 8) == text and len(text) == 4096


def moves(number, end):
    chance, done = random.Random(number), 0
    dirs = places(folders[number % len(folders)])
    any_name = lambda: os.path.join(chance.choice(dirs), f'n{chance.randrange(NAMES)}')
    kept = lambda: os.path.join(chance.choice(dirs), f'kept{chance.randrange(KEPT)}')
    while time.monotonic() < end:
        what = chance.randrange(10)
        try:
            if what == 0:
                fd = os.open(any_name(), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
                os.write(fd, f'{number:04}{done % 10000:04}'.encode() * 512)
                os.close(fd)
            elif what == 1:
                os.rename(any_name(), any_name())
            elif what == 2:
                os.unlink(any_name())
            elif what == 3:
                os.link(any_name(), any_name())
            elif what == 4:
                assert is_whole(text_of(any_name()))
            elif what == 5:
                os.mkdir(any_name())
            elif what == 6:
                os.rmdir(any_name())
            elif what == 7:
                names = os.listdir(chance.choice(dirs))
                assert len(names) == len(set(names)), 'a name is listed twice'
            elif what == 8:
                # These change places only, and never meet.
                name = f'kept{chance.randrange(KEPT)}'
                renameat2(os.path.join(chance.choice(dirs), name), os.path.join(chance.choice(dirs), name), NOREPLACE)
            else:
                renameat2(any_name(), any_name(), EXCHANGE)
            done += 1
        except OSError as error:
            if error.errno not in MAY:
                raise
    return done


for place in places(folders[0]):
    os.mkdir(place)
for n in range(KEPT):
    with open(os.path.join(places(folders[0])[n % DIRS], f'kept{n}'), 'w') as file:
        file.write(f'kept{n}')
end, children = time.monotonic() + seconds, []
for number in range(processes):
    pid = os.fork()
    if pid == 0:
        try:
            sys.stdout.write(f'{moves(number, end)}\n')
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    children.append(pid)
failed = [pid for pid in children if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0]
assert not failed, f'{len(failed)} processes failed'
for folder in folders:
    found = {}
    for place in places(folder):
        for name in os.listdir(place):
            if name.startswith('kept'):
                assert name not in found and text_of(os.path.join(place, name)) == name.encode(), (place, name)
                found[name] = place
            elif os.path.isfile(os.path.join(place, name)):
                assert is_whole(text_of(os.path.join(place, name))), (place, name)
    assert len(found) == KEPT, sorted(found)
