# names.py FOLDER: names of any bytes, paths as long as the kernel takes them, and trees that are deeper than that.
import os, sys

top = os.fsencode(sys.argv[1])

# Each byte but two, alone and with others; and what is no text in any encoding.
names = {bytes([byte]) for byte in range(1, 256) if byte != 0x2f} - {b'.'}
names |= {bytes([byte]) * count for byte in (1, 0x20, 0x7f, 0x80, 0xc0, 0xff) for count in (2, 255)}
names |= {b'\xff\xfe', b'a\nb', b' ', b'\t', b'-rf', b'*', b'\\', b'"', b"'", b'...', b'\xc3', b'\xed\xa0\x80'}
folder = os.path.join(top, b'names')
os.mkdir(folder)
for name in names:
    path = os.path.join(folder, name)
    with open(path, 'xb') as file:
        file.write(name)
assert set(os.listdir(folder)) == names
for name in names:
    path = os.path.join(folder, name)
    with open(path, 'rb') as file:
        assert file.read() == name, name
    moved = os.path.join(folder, b'moved')
    os.rename(path, moved)
    os.link(moved, path)
    os.unlink(moved)
    assert os.stat(path).st_nlink == 1, name
for name in names:
    os.unlink(os.path.join(folder, name))
assert os.listdir(folder) == []
os.rmdir(folder)
for name in (b'x' * 256,):
    try:
        os.mkdir(os.path.join(top, name))
        raise AssertionError('a name that is too long is taken')
    except OSError as error:
        assert error.errno == 36, error

# A path of 4,095 bytes, which with its end is as long as one may be.
path = top
while len(path) < 4095 - 256:
    path += b'/' + b'd' * 200
    os.mkdir(path)
path += b'/' + b'f' * (4095 - len(path) - 1)
assert len(path) == 4095
with open(path, 'xb') as file:
    file.write(b'deep')
with open(path, 'rb') as file:
    assert file.read() == b'deep'
assert os.stat(path).st_size == 4
os.rename(path, path[:-1] + b'g')
os.unlink(path[:-1] + b'g')

# And one to which no path leads at once.
os.chdir(top)
os.mkdir('deep')
os.chdir('deep')
DEPTH, NAME = 150, 'e' * 100
for level in range(DEPTH):
    os.mkdir(NAME)
    os.chdir(NAME)
with open('f', 'x') as file:
    file.write('deepest')
fd = os.open('.', os.O_RDONLY)
os.chdir('/')
os.fchdir(fd)
assert open('f').read() == 'deepest'
os.unlink('f')
for level in range(DEPTH):
    os.chdir('..')
    os.rmdir(NAME)
assert os.listdir('.') == []
