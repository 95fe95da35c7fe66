#!/usr/bin/env python3
"""A tree that is a program: 9P2000 on standard input and output.

    slashn bind "exec!python3 $PWD/hello.py" /n/hello; cat /n/hello/time

Each name of TREE is a directory of names, or a function that gives what a file contains when it is opened.
"""
import os, struct, sys, time, zlib

TREE = {
    "hello": lambda: "hello, world\n",
    "time": lambda: time.strftime("%H:%M:%S\n"),
    "self": {"pid": lambda: f"{os.getpid()}\n", "cwd": lambda: os.getcwd() + "\n"},
}
fids = {}  # fid -> [path, what it contains once it is open]
pack, text = struct.pack, lambda s: struct.pack("<H", len(s.encode())) + s.encode()

def node(path):
    here = TREE
    for name in path:
        here = here[name]  # KeyError: there is no such file
    return here

def qid(path):
    kind = 0x80 if isinstance(node(path), dict) else 0
    return pack("<BIQ", kind, 0, zlib.crc32("/".join(path).encode()))  # the same each time it is started

def stat(path):
    mode = 0o555 | 0x80000000 if isinstance(node(path), dict) else 0o444
    names = text(path[-1] if path else "/") + text("me") * 3
    entry = pack("<HI", 0, 0) + qid(path) + pack("<IIIQ", mode, 0, 0, 0) + names
    return pack("<H", len(entry)) + entry

def answer(kind, body):
    fid = struct.unpack_from("<I", body)[0] if len(body) >= 4 else 0
    if kind == 100:  # Tversion
        return body[:4] + text("9P2000")
    if kind == 104:  # Tattach
        fids[fid] = [(), None]
        return qid(())
    if kind == 108:  # Tflush
        return b""
    if kind == 110:  # Twalk
        newfid, count = struct.unpack_from("<IH", body, 4)
        path, qids, at = fids[fid][0], b"", 10
        for _ in range(count):
            length = struct.unpack_from("<H", body, at)[0]
            path, at = path + (body[at + 2:at + 2 + length].decode(),), at + 2 + length
            qids += qid(path)
        fids[newfid] = [path, None]
        return pack("<H", count) + qids
    path = fids[fid][0]
    if kind == 112:  # Topen
        if body[4] & 3:
            raise PermissionError("permission denied")
        here = node(path)
        entries = [stat(path + (name,)) for name in here] if isinstance(here, dict) else []
        fids[fid][1] = b"".join(entries) if isinstance(here, dict) else here().encode()
        return qid(path) + pack("<I", 0)
    if kind == 116:  # Tread
        offset, count = struct.unpack_from("<QI", body, 4)
        data = fids[fid][1][offset:offset + count]
        return pack("<I", len(data)) + data
    if kind == 120:  # Tclunk
        return fids.pop(fid) and b""
    if kind == 124:  # Tstat
        return pack("<H", len(stat(path))) + stat(path)
    raise PermissionError("permission denied")

while len(head := sys.stdin.buffer.read(7)) == 7:
    size, kind, tag = struct.unpack("<IBH", head)
    body = sys.stdin.buffer.read(size - 7)
    try:
        kind, reply = kind + 1, answer(kind, body)
    except KeyError:
        kind, reply = 107, text("file does not exist")
    except Exception as error:
        kind, reply = 107, text(str(error))
    sys.stdout.buffer.write(pack("<IBH", 7 + len(reply), kind, tag) + reply)
    sys.stdout.buffer.flush()
