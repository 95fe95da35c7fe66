# append.py FILE NAME COUNT: appends COUNT lines of many lengths that begin with NAME and their number.
import os, random, sys

path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
for n in range(count):
    line = f'{name} {n} '.encode() + b'x' * random.randrange(1, 9000) + b'\n'
    assert os.write(fd, line) == len(line)
