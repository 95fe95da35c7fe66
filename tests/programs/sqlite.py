# sqlite.py FOLDER MODE: a database in the journal mode MODE keeps what it is told, from several connections, of which one
# is another process's, and takes back what is rolled back.
import os, sqlite3, subprocess, sys

folder, mode = sys.argv[1:3]
path = os.path.join(folder, mode + '.db')


def connect():
    db = sqlite3.connect(path, isolation_level=None, timeout=60)
    assert db.execute(f'PRAGMA journal_mode={mode}').fetchone()[0] == mode
    return db


one, other = connect(), connect()
one.execute('CREATE TABLE t(k INTEGER PRIMARY KEY, v BLOB)')
for turn in range(8):
    db = (one, other)[turn % 2]
    db.execute('BEGIN')
    db.executemany('INSERT INTO t VALUES(?, ?)', ((turn * 50 + n, bytes([turn]) * (n * 3)) for n in range(50)))
    db.execute('COMMIT')
    db.execute('BEGIN')
    db.execute('DELETE FROM t')
    db.execute('ROLLBACK')
    assert other.execute('SELECT count(*), sum(length(v)) FROM t').fetchone() == (turn * 50 + 50, 3675 * (turn + 1))

# A reader keeps what it began with in WAL mode alone; in the others it keeps the writer from committing.
one.execute('BEGIN')
assert one.execute('SELECT count(*) FROM t').fetchone() == (400,)
writes = '''import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=0)
db.execute('DELETE FROM t WHERE k < 100')
db.commit()
'''
writer = subprocess.run([sys.executable, '-c', writes, path], capture_output=True, text=True)
assert (writer.returncode == 0) == (mode == 'wal'), writer.stderr
assert one.execute('SELECT count(*) FROM t').fetchone() == (400,)
one.execute('COMMIT')
assert one.execute('SELECT count(*) FROM t').fetchone() == (300 if mode == 'wal' else 400,)

one.execute('CREATE INDEX i ON t(v)')
one.execute('VACUUM')
assert other.execute('PRAGMA integrity_check').fetchall() == [('ok',)]
one.close()
other.close()
left = sorted(name for name in os.listdir(folder) if name.startswith(mode))
assert left == [mode + '.db'] + [mode + '.db-journal'] * (mode in ('truncate', 'persist')), left
